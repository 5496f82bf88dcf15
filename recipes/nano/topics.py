"""What a sentence is about, and sentences about it: one question of `phrases.CONCEPTS`, in a file of its own for its length."""

TOPICS = {
    ("food", "cooking", "kitchen"): (
        "We [cooked|ate|made] {food} [with {food2}|] [for lunch|for dinner|].",
        "The {food} [tasted|smelled] [great|strange|of smoke].",
        "The recipe needs {amount} grams of {food}.",
        "Stir the soup and add the {food}.",
    ),
    ("weather", "climate", "outside"): (
        "[It|Tomorrow it] will [rain|snow|be sunny|be foggy].",
        "The {weather} [came|lasted] [all {part}|on {day}].",
        "It is [freezing|boiling hot|windy|cloudy] [in {city}|outside].",
        "The forecast says {weather} for {day}.",
    ),
    ("travel", "trip", "journey", "holiday"): (
        "We [flew|drove|took the train] to {city}.",
        "[Our|The] hotel in {city} [was|is] near the {place}.",
        "I booked a [flight|ticket|room] to {city}.",
        "The train from {city} to {city2} takes {amount} hours.",
        "Pack your suitcase, we leave for {city} on {day}.",
    ),
    ("health", "body", "doctor", "medicine"): (
        "I have a [headache|sore throat|cold|fever|bad back].",
        "The doctor gave [me|{first}] [some pills|a cream|a jab].",
        "{first} broke [a leg|an arm] and is in hospital.",
        "Drink plenty of water and rest until the fever is gone.",
    ),
    ("school", "lessons", "learning"): (
        "The [pupils|children] [wrote a test|learned about {animal}s].",
        "{first} did [her|his] homework in the library.",
        "Our teacher [explained|repeated] the sum.",
        "The exam in [maths|history|music] is on {day}.",
    ),
    ("money", "payment", "bank", "costs"): (
        "I [paid|owe|spent|saved] {price} [this month|].",
        "The [bill|invoice|rent] [is|was] {price}.",
        "My [card|payment] was [charged twice|refused|declined].",
        "The bank [took|charged] {price} [too much|for it|].",
        "[They took|I was charged] {price} twice.",
        "Why is there [an extra charge|{price}] on my [bill|card]?",
    ),
    ("sport", "games", "exercise"): (
        "Our team won by {count} goals.",
        "{first} [runs|swims|cycles] every {day}.",
        "The match in {city} was a draw.",
        "She scored in the last minute of the game.",
    ),
    ("animals", "pets", "nature"): (
        "The {animal} [sleeps|hid] [under|behind] the {thing}.",
        "We saw a {animal} and a {animal2} in the {place}.",
        "My {animal} needs fresh water.",
        "A {animal} had three young ones.",
    ),
    ("music", "concert", "songs"): (
        "{first} plays the [guitar|piano|violin|drums].",
        "We sang [old|new] songs all {part}.",
        "The band played in the {place}.",
        "I cannot get that tune out of my head.",
    ),
    ("post", "parcels", "delivery", "shipping"): (
        "[The|My] parcel [from {shop}|] [came|arrived|is due] on {day}.",
        "The [postman|courier|driver] left [a card|the box] at the {place}.",
        "[Where is|I am waiting for] my [parcel|package|order] [from {shop}|]?",
        "The tracking [page|number] [shows nothing|says it is in {city}].",
        "The letter to {city} [got lost|was delivered|needs a stamp].",
    ),
    ("account", "password", "login", "computer access"): (
        "I [forgot|cannot remember|want to change] my password.",
        "I cannot [log in|sign in|get into my account].",
        "My account is [locked|blocked|closed].",
        "The [page|site|app] says my [user name|password|email] is wrong.",
        "How do I [change my email address|reset my password|delete my account]?",
    ),
    ("garden", "plants", "outdoors work"): (
        "I [planted|watered|cut] the [roses|tomatoes|hedge|grass].",
        "The [tulips|apple trees|beans] are in flower.",
        "Dig a hole and put the [seeds|bulbs] in.",
        "The lawn needs mowing again.",
    ),
}
