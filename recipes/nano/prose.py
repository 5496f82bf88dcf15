"""Everyday prose: little stories, letters, talk at the counter, what things are for, small-talk questions and answers."""

import random

from extract import Chat
from facts import FACTS
from grammar import a, choose, fill, listed, rough, say
from phrases import CONCEPTS
from words import ADJECTIVES, ANIMALS, COLOURS, FOODS, GROUPS, HOBBIES, OPPOSITES, SYNONYMS, THINGS

# Stories: sentences in order; each is said with the chance 0.8, so that no two stories run alike.
STORIES = {
    "shopping": (
        "{first} [went|walked|drove] to {shop} [on {day}|in the {part}|] to buy [a new|a|another] {thing}.",
        "[The shop was|It was] [nearly empty|full of people|about to close].",
        "[She|He] [looked at|compared] {count} of them and [liked|chose] the {colour} one[ best|].",
        "It cost {price}, [which was more than expected|which seemed fair|after a discount].",
        "The shop assistant [explained|showed] how to [use|clean|charge] it.",
        "{first} paid [by card|in cash|with a voucher] and [kept|lost|got] the receipt.",
        "At home the {thing} [worked at once|did not fit|looked even better|was too big for the {place}].",
        "[So it|A week later it] [went back to the shop|was given to {first2}|stood in the {place}].",
        "The shop [gave the money back|offered an exchange|said sorry and paid the refund] [without a question|within a week|].",
    ),
    "delivery": (
        "{first} ordered [a|the] {thing} from {shop} on {day}.",
        "The website promised delivery [in two days|by {day2}|within a week|before the weekend].",
        "[The parcel|The package|The order] [was sent from|left] {city} [the same day|on {date}].",
        "[Then nothing happened|But nothing came|Days went by].",
        "[The tracking page|The tracking number] showed [that it was on its way|no news|that the driver could not find the house].",
        "{first} [called|wrote to] [the shop|customer service|the courier] to ask where it was.",
        "[They answered|The reply came] [after an hour|the next day|quickly]: the parcel [was lost|had gone to the wrong address|was waiting at the {place}].",
        "[In the end|At last|On {day2}] [the courier|the postman] [rang the bell|left it with a neighbour|brought it].",
        "The box was [torn|wet|in good shape], [but|and] the {thing} [was unharmed|had a scratch|was missing].",
        "{first} [was relieved|wrote a complaint|thanked the driver|asked for a replacement].",
    ),
    "repair": (
        "The {thing} in the {place} [broke|stopped working|would not turn on|made a strange noise] [on {day}|this {part}|].",
        "{first} [checked the plug|pressed every button|read the manual|took it apart], but [nothing happened|it stayed dead|the fault remained].",
        "[It is under warranty|The warranty had ended|It was only {amount} days old], so [she|he] [phoned|called|wrote to] {shop}.",
        "The technician [came on {day2}|had no time until {day2}|asked what was wrong].",
        "He [replaced the battery|changed a fuse|tightened a screw|ordered a spare part].",
        "The repair [took {count} hours|cost {price}|was free].",
        "Now the {thing} [works again|is as good as new|runs without trouble].",
        '"[No hurry|It can wait|I need it soon|It is urgent]," {first} had said [on the phone|at first].',
        "[A broken|A faulty] {thing} is [a nuisance|no fun] when you need it every day.",
    ),
    "payment": (
        "{first} [looked at|opened] the bill from {shop}[ and frowned|].",
        "They had charged {price} [twice|for something that was never ordered|too much].",
        "[Her|His] card [was declined|had expired|had been charged] [on {day}|on {date}].",
        "[She|He] asked for [a refund|an explanation|the invoice].",
        '"We are sorry for the mistake," said the clerk, "you will get your money back [this week|within {count} days|soon]."',
        "The [bank|shop] [returned|sent back|refunded] {price}.",
        "[She|He] [saves|spends|earns] {price} a month.",
        "A payment is due on {date}; who pays late pays a fee.",
        "You can pay [by card|in cash|by bank transfer|in {count} instalments].",
    ),
    "day out": (
        "On {day} {first} and {first2} [took the train|drove|cycled] to {city}.",
        "They [packed|brought] {food}, {food2} and [a bottle of water|a flask of tea].",
        "The {weather} [surprised them|stopped at {time}|lasted all {part}].",
        "They saw a {animal} [near the river|in the park|behind a fence].",
        "{first} [forgot|lost|dropped] the {thing}, but {first2} [laughed|found it|had another one].",
        "[At {time}|In the {part}] they [sat down in a cafe|visited the museum|swam in the lake].",
        '"[What a lovely day|I am so tired|Let us come back]," said {first2}.',
        "They [were home|came back] [by {time}|late in the {part}].",
    ),
    "at home": (
        "{first} lives with a {animal} in {city} and works as a {job}.",
        "Every {part} {first} [drinks coffee|reads the paper|goes for a run|feeds the {animal}].",
        "The {place} is [small but bright|full of books|painted {colour}].",
        "There is a {material} {thing} beside the {thing2}.",
        "[On {day}s|At weekends] {first} likes {hobby}.",
        "{first2}, who lives next door, [often comes for tea|plays the piano|complains about the noise].",
        "Last {month} they [painted|cleaned] the {place} together.",
        "For dinner there is {food} with {food2}.",
        "[It is a quiet life|Nobody is ever bored there|They are good friends].",
    ),
    "work": (
        "The meeting starts at {time} in the {place}.",
        "{first} [prepared|printed|forgot] the papers.",
        "{first2} asked [when the work would be done|who ordered {amount} {thing}s|how to log in to the new account].",
        '"[Right away|By {day}|When I have time]," {first} answered.',
        "The boss [was pleased|was annoyed|said nothing].",
        "They [agreed on|put off] the plan [until {day}|for {month}|].",
        "A customer from {city} [praised the quick reply|complained about the late order|wanted to cancel an order|asked for a new password].",
        "{first} wrote a [polite|short|friendly] answer and [solved the problem|closed the file|went home].",
    ),
    "school": (
        "In {first}'s class there are {amount} children.",
        "The teacher [drew|wrote] a {animal} on the board.",
        '"How many legs has a {animal}?" [she|he] asked.',
        "{first2} [knew the answer|looked out of the window|raised a hand].",
        "[At {time}|At noon] they ate {food} [in the canteen|].",
        "In the {part} they learned [about {city}|to count to twenty|a song about {weather}].",
        "{first} forgot the homework [again|] and was [sorry|sad|cross].",
        "On {day} there is no school.",
    ),
}

USES = {
    "kettle": "boil water",
    "toaster": "toast bread",
    "lamp": "give light",
    "chair": "sit on",
    "bed": "sleep in",
    "mirror": "see yourself",
    "clock": "tell the time",
    "phone": "call people",
    "printer": "print pages",
    "keyboard": "type",
    "camera": "take pictures",
    "headphones": "listen to music",
    "charger": "charge a battery",
    "router": "connect to the internet",
    "fridge": "keep food cold",
    "freezer": "freeze food",
    "oven": "bake bread",
    "washing machine": "wash clothes",
    "dishwasher": "wash plates",
    "vacuum cleaner": "clean the floor",
    "iron": "press shirts",
    "blender": "mix drinks",
    "coffee machine": "make coffee",
    "knife": "cut things",
    "umbrella": "keep off the rain",
    "watch": "tell the time",
    "blanket": "keep warm",
    "towel": "dry yourself",
    "ladder": "climb up",
    "hammer": "hit nails",
    "drill": "make holes",
    "saw": "cut wood",
    "broom": "sweep the floor",
    "bicycle": "ride",
    "helmet": "protect your head",
    "tent": "sleep outdoors",
    "torch": "see in the dark",
    "map": "find the way",
    "compass": "find north",
    "scissors": "cut paper",
    "stapler": "join sheets of paper",
    "heater": "warm a room",
    "fan": "cool a room",
    "doorbell": "call at the door",
    "key": "open a lock",
    "scales": "weigh things",
    "pen": "write",
    "wallet": "carry money",
    "suitcase": "carry clothes",
    "backpack": "carry things",
    "lawn mower": "cut grass",
    "microwave": "heat food",
    "smart watch": "count steps",
    "tablet": "read and draw",
    "monitor": "see what the computer shows",
}

TALK = (
    ("[Hello|Hi|Hey|Good morning|Hi there|Hello there][!|.|]", "[Hello! How can I help you?|Hi! What can I do for you?|Good day! How may I help?]"),
    ("How are you[ today|]?", "[I am fine, thank you. And you?|Very well, thanks. How are you?]"),
    ("[Thanks|Thank you|Thanks a lot][!|.|]", "[You are welcome.|My pleasure.|Any time.]"),
    ("[Good night|Bye|Goodbye|See you later][!|.|]", "[Good night, sleep well.|Goodbye!|See you soon.]"),
    ("[Who are you|What are you|What is your name]?", "I am nano, a very small language model."),
    ("What can you do?", "I can read short texts, find words in them and answer in a fixed form."),
    ("How many days has a week?", "Seven."),
    ("How many months has a year?", "Twelve."),
    ("How many legs has a [dog|cat|horse|cow|sheep]?", "Four."),
    ("How many legs has a spider?", "Eight."),
    ("How many legs has [an ant|a bee]?", "Six."),
    ("[What colour is|Which colour has] [the sky on a clear day|the sea]?", "Blue."),
    ("What colour is [grass|a leaf in spring]?", "Green."),
    ("What colour is snow?", "White."),
    ("What colour is a ripe banana?", "Yellow."),
    ("What do cows drink?", "Water."),
    ("What do cows give us?", "Milk."),
    ("How many minutes has an hour?", "Sixty."),
    ("How many hours has a day?", "Twenty-four."),
    ("Where does the sun rise?", "In the east."),
    ("Where does the sun set?", "In the west."),
    ("What is frozen water called?", "Ice."),
    ("Which season comes after [winter|the winter]?", "Spring."),
    ("Which season is the coldest?", "Winter."),
    ("What does urgency mean?", "That something must be done soon."),
    ("What does it mean if something is urgent?", "It cannot wait."),
    ("What is a refund?", "Money that a shop gives back."),
    ("What is a warranty?", "A promise that a thing is repaired free for some time."),
    ("What is an invoice?", "A bill for something bought."),
    ("What is a parcel?", "A packed thing that is sent by post."),
    ("What is a courier?", "Somebody who brings parcels."),
    ("What is a complaint?", "Saying that you are not satisfied."),
    ("What is praise?", "Saying that something is good."),
    ("What is a discount?", "A lower price."),
    ("What is an intent?", "What somebody wants to do."),
    ("What is a product?", "A thing that is made to be sold."),
    ("What is a password for?", "It keeps an account safe."),
    ("What is a receipt?", "A paper that shows what you paid."),
    ("What is a replacement?", "A new thing instead of the old one."),
    ("What does out of stock mean?", "The shop has none left."),
    ("What does defective mean?", "Broken or not working as it should."),
    ("What does to cancel mean?", "To stop something that was planned."),
    ("What is a subscription?", "Paying regularly for something, such as a magazine."),
)


def story(rng: random.Random) -> str:
    """Prose about one to three themes; the people and things stay the same within a theme."""
    paragraphs = []
    for theme in rng.sample(list(STORIES), rng.choice((1, 1, 2, 2, 3))):
        slots: dict[str, str] = {}
        sentences = [say(rng, sentence, slots) for sentence in STORIES[theme] if rng.random() < 0.8]
        if rng.random() < 0.4:
            concept = rng.choice(("mood", "priority", "weather", "condition"))
            spoken = say(rng, rng.choice(rng.choice(list(CONCEPTS[concept][1].values()))), slots)
            sentences.append(f'"{spoken}" said {fill(rng, "{first}", slots)}.'.replace('." said', '," said'))
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


def letter(rng: random.Random) -> str:
    """A letter or a review in which somebody feels and wants something."""
    slots: dict[str, str] = {}
    lines = [
        say(rng, rng.choice(rng.choice(list(CONCEPTS[concept][1].values()))), slots) for concept in rng.sample(list(CONCEPTS), rng.randint(2, 4))
    ]
    lines.insert(rng.randrange(len(lines)), say(rng, rng.choice(FACTS), slots))
    lines = [rough(rng, line) for line in lines]
    return f"{say(rng, '[Dear|Hello|Hi] {first3},')}\n\n{' '.join(lines)}\n\n{say(rng, '[Best wishes|Yours|Kind regards|Love|See you soon],')}\n{fill(rng, '{first2}', {})}"


def knowledge(rng: random.Random) -> str:
    """A paragraph that says what words mean: uses, groups, opposites, and several ways of saying one thing."""
    lines = []
    for _ in range(rng.randint(3, 8)):
        match rng.randrange(7):
            case 0 | 1:
                thing, use = rng.choice(list(USES.items()))
                lines.append(
                    choose(
                        rng,
                        f"[{a(thing)} is for people who want to {use}|To {use}, you need {a(thing)}|You use {a(thing)} to {use}|With {a(thing)} you can {use}].",
                    )
                )
            case 2:
                group, words = rng.choice(list(GROUPS.items()))
                lines.append(f"{listed(rng.sample(words, 3))} are {group}.")
            case 3:
                word, other = rng.choice(list(OPPOSITES.items()))
                lines.append(choose(rng, f"[The opposite of {word} is {other}|Not {word} but {other}|What is {word} is not {other}]."))
            case 4:
                word, other = rng.choice(list(SYNONYMS.items()))
                lines.append(choose(rng, f"[{word} means much the same as {other}|Instead of {word} one can say {other}]."))
            case 5:
                question, answer = rng.choice(TALK[6:])
                lines.append(f"{choose(rng, question)} {choose(rng, answer)}")
            case _:
                concept = rng.choice(list(CONCEPTS))
                names, templates = rng.choice(list(CONCEPTS[concept][1].items()))
                slots: dict[str, str] = {}
                ways = [fill(rng, choose(rng, template), slots).rstrip(".") for template in rng.sample(templates, 2)]
                lines.append(
                    choose(rng, "[When|If] [somebody|a person|a customer|a friend] [says|writes]")
                    + f' "{ways[0]}" or "{ways[1]}", '
                    + choose(rng, f"[the {concept} is|it means|that is]")
                    + f": {listed(list(names[:2]), 'or')}."
                )
    return " ".join(line[:1].upper() + line[1:] for line in lines)


def inventory(rng: random.Random) -> str:
    """Lists as people write them: shopping, packing, to-do, price lists, timetables."""
    match rng.randrange(4):
        case 0:
            return "Shopping list:\n" + "\n".join(f"- {rng.randint(1, 9)} {food}" for food in rng.sample(FOODS, rng.randint(3, 7)))
        case 1:
            return say(rng, "Packing list for {city}:") + "\n" + "\n".join(f"- {a(thing)}" for thing in rng.sample(THINGS, rng.randint(3, 7)))
        case 2:
            return (
                say(rng, "Prices at {shop}:") + "\n" + "\n".join(f"{thing}: {say(rng, '{price}')}" for thing in rng.sample(THINGS, rng.randint(3, 6)))
            )
        case _:
            return (
                say(rng, "To do on {day}:")
                + "\n"
                + "\n".join(
                    f"{i + 1}. {say(rng, '[call {name}|clean the {place}|repair the {thing}|return the {thing}|pay the bill of {price}|order {food}|write to {name}|water the plants]')}"
                    for i in range(rng.randint(3, 6))
                )
            )


def small_talk(rng: random.Random) -> Chat:
    """Greetings, everyday questions, what things are for, likes and advice; several turns."""
    chat: Chat = []
    for _ in range(rng.choice((1, 2, 3, 4))):
        match rng.randrange(5):
            case 0 | 1:
                question, answer = rng.choice(TALK)
                chat += [("user", choose(rng, question)), ("assistant", choose(rng, answer))]
            case 2:
                thing, use = rng.choice(list(USES.items()))
                if rng.random() < 0.5:
                    chat += [
                        ("user", choose(rng, f"What [is|do you use] {a(thing)} for?").replace("do you use", "do people use")),
                        ("assistant", f"To {use}."),
                    ]
                else:
                    chat += [("user", choose(rng, f"What do I need to {use}?")), ("assistant", f"{a(thing).capitalize()}.")]
            case 3:
                slots: dict[str, str] = {}
                chat += [
                    ("user", say(rng, "My name is {first} and I [like {hobby}|live in {city}|am a {job}|have a {animal}].", slots)),
                    ("assistant", fill(rng, "Nice to meet you, {first}!", slots)),
                ]
            case _:
                x, y = rng.sample(rng.choice((ANIMALS, COLOURS, HOBBIES, ADJECTIVES)), 2)
                chat += [("user", f"Say one of these: {x} or {y}."), ("assistant", rng.choice((x, y)))]
    return chat
