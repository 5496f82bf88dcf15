"""Word lists: every slot of a template, such as `{name}` or `{thing}`, draws from the list of that name."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _items(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


FIRST_NAMES = _words("""
Ana Ben Carla David Emma Felix Grace Hana Ivan Julia Karim Lena Marco Nina Omar Paula Quentin Rosa Sam Tara Uma Victor Wendy Xavier
Yara Zoe Adam Bella Chen Diana Elias Fatima George Helen Igor Jonas Kate Leo Maria Noah Olga Peter Rita Simon Tom Ursula Vera Will
Yusuf Zara Alice Bruno Clara Daniel Eva Frank Gina Hugo Iris Jack Kim Laura Max Nora Oscar Petra Ralph Sara Theo Vince Anya Boris
Cora Dmitri Ella Finn Greta Henry Ines Jakob Klara Liam Mona Nils Otto Priya Ravi Stella Timo Vikram Mei Aiko Kenji Lin Wei Sofia
Mateo Lucia Diego Amara Kofi Zuri Malik Leila Nadia Tariq Aisha Hassan Ruth Esther Joel Naomi Isaac Agnes Edith Walter Harold Mabel
Dora Ernest Ida Arthur Betty Charles Dorothy Edward Florence Gordon Hilda Irene James Karen Linda Martin Nancy Oliver Pamela Robert
Susan Thomas Vivian Wanda Carlos Pedro Elena Pablo Marta Luis Carmen Jorge Pilar Andrei Mihai Ioana Bogdan Tomas Jana Pavel Milan""")

LAST_NAMES = _words("""
Smith Jones Brown Taylor Wilson Davies Evans Thomas Roberts Walker Wright Green Hall Wood Clarke Hughes Edwards Turner Hill Moore
Cooper Ward King Baker Carter Morris Parker Bell Cook Bailey Shaw Fox Gray Mills Stone Reed Lane Marsh Frost Novak Silva Costa
Rossi Moreau Keller Weber Larsen Berg Lind Patel Khan Singh Ali Tanaka Sato Kim Park Nguyen Garcia Lopez Diaz Santos Okoye Mensah""")

NAMES = (
    FIRST_NAMES
    + tuple(f"{title} {last}" for title in ("Mr", "Mrs", "Ms", "Dr") for last in LAST_NAMES[::3])
    + ("my sister", "my brother", "Grandma", "Grandpa", "Mum", "Dad", "Aunt Rose", "Uncle Bill", "the neighbour", "the teacher")
)

PLACES = _items("""
kitchen, bathroom, bedroom, garden, garage, hall, attic, cellar, office, library, school, park, museum, station, airport, market,
bakery, pharmacy, hospital, church, beach, harbour, hotel, cafe, restaurant, gym, pool, theatre, cinema, bank, post office, town hall,
playground, living room, balcony, shed, meeting room, classroom, canteen, reception, workshop, car park, bus stop, bookshop,
supermarket, farm, forest, river, bridge, lake, zoo, stadium, corner shop, laundry room, dining room, nursery, basement, roof, yard""")

# Things that one can own, buy, lose, lend, break.
THINGS = _items("""
kettle, toaster, lamp, chair, table, sofa, desk, bed, mirror, clock, radio, phone, laptop, tablet, printer, keyboard, mouse, monitor,
camera, tripod, headphones, speaker, charger, cable, battery, router, television, remote control, fridge, freezer, oven, microwave,
dishwasher, washing machine, dryer, vacuum cleaner, iron, hair dryer, blender, mixer, coffee machine, teapot, frying pan, saucepan,
knife, spoon, plate, mug, bottle, lunch box, backpack, suitcase, wallet, umbrella, watch, ring, necklace, scarf, jacket, coat, shirt,
jumper, dress, skirt, trousers, jeans, socks, shoes, boots, sandals, slippers, gloves, hat, belt, tie, pillow, blanket, towel, curtain,
carpet, rug, shelf, drawer, cupboard, bookcase, ladder, hammer, screwdriver, drill, saw, spade, rake, hose, bucket, broom, mop, bin,
bicycle, helmet, scooter, skateboard, tent, sleeping bag, torch, map, compass, rope, ball, racket, kite, puzzle, board game, doll,
guitar, piano, violin, drum, flute, notebook, pencil, pen, ruler, scissors, glue, stapler, envelope, calendar, poster, painting,
vase, candle, heater, fan, air conditioner, thermostat, smoke alarm, doorbell, lock, key, window, door, tap, shower, sink, toilet,
light bulb, plug, extension lead, smart watch, game console, e-reader, projector, sewing machine, electric toothbrush, scales, trolley,
lawn mower, garden chair, grill, flower pot, bird feeder, dog lead, cat basket, fish tank, pram, high chair, car seat, desk lamp,
office chair, hard drive, memory card, webcam, microphone, power bank, phone case, screen protector, rice cooker, juicer, air fryer""")

FOODS = _items("""
bread, butter, cheese, milk, eggs, rice, pasta, soup, salad, apples, pears, oranges, bananas, grapes, cherries, lemons, carrots,
potatoes, onions, tomatoes, peppers, beans, peas, mushrooms, chicken, fish, beef, ham, sausages, pizza, pancakes, honey, jam, sugar,
salt, flour, oil, tea, coffee, juice, water, chocolate, biscuits, cake, ice cream, yoghurt, nuts, noodles, lentils, spinach, garlic,
olives, cucumbers, plums, melons, strawberries, muffins, rolls, cereal, porridge""")

ANIMALS = _items("""
dog, cat, rabbit, hamster, horse, cow, sheep, goat, pig, duck, hen, goose, parrot, owl, eagle, sparrow, fish, shark, whale, dolphin,
frog, snake, lizard, turtle, spider, bee, ant, butterfly, mouse, rat, squirrel, fox, wolf, bear, lion, tiger, elephant, giraffe, monkey,
camel, donkey, deer, hedgehog, bat, swan, penguin, seal, crab, snail""")

CITIES = _items("""
London, Paris, Berlin, Madrid, Rome, Vienna, Prague, Lisbon, Dublin, Oslo, Stockholm, Helsinki, Warsaw, Budapest, Athens, Istanbul,
Cairo, Nairobi, Lagos, Accra, Delhi, Mumbai, Tokyo, Osaka, Seoul, Beijing, Shanghai, Hanoi, Bangkok, Jakarta, Manila, Sydney, Perth,
Auckland, Toronto, Montreal, Boston, Chicago, Denver, Seattle, Austin, Miami, Lima, Bogota, Santiago, Quito, Hamburg, Munich, Zurich,
Geneva, Milan, Naples, Porto, Seville, Lyon, Nice, Leeds, York, Bristol, Cardiff, Glasgow, Krakow, Riga, Tallinn, Bergen, Ghent""")

COUNTRIES = {
    "France": "Paris",
    "Germany": "Berlin",
    "Spain": "Madrid",
    "Italy": "Rome",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
    "Norway": "Oslo",
    "Sweden": "Stockholm",
    "Finland": "Helsinki",
    "Poland": "Warsaw",
    "Hungary": "Budapest",
    "Greece": "Athens",
    "Egypt": "Cairo",
    "Kenya": "Nairobi",
    "Ghana": "Accra",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Peru": "Lima",
    "Chile": "Santiago",
    "Thailand": "Bangkok",
    "Vietnam": "Hanoi",
    "Canada": "Ottawa",
    "Denmark": "Copenhagen",
    "India": "New Delhi",
}

COLOURS = _words("red blue green yellow black white grey brown pink purple orange silver gold beige turquoise navy cream")
SIZES = _items("small, medium, large, tiny, huge, extra large, little, big")
MATERIALS = _words("wood metal glass plastic cotton wool leather paper steel silk stone rubber clay")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
NUMBER_WORDS = _words("zero one two three four five six seven eight nine ten eleven twelve")
JOBS = _items("""
teacher, nurse, doctor, baker, cook, driver, farmer, gardener, plumber, electrician, painter, carpenter, builder, mechanic, pilot,
sailor, tailor, dentist, vet, lawyer, judge, writer, singer, actor, dancer, waiter, cleaner, librarian, postman, police officer,
firefighter, engineer, scientist, photographer, hairdresser, shop assistant, receptionist, secretary, bank clerk, coach""")
HOBBIES = _items("""
swimming, reading, cooking, painting, dancing, running, cycling, hiking, fishing, sailing, skiing, chess, tennis, football, yoga,
singing, knitting, gardening, photography, baking, climbing, pottery, drawing, playing the piano, watching films, collecting stamps""")
SHOPS = _items("""
Maple & Sons, Bright Corner, Northgate Stores, The Blue Door, Harbour Goods, Little Oak, Green Lane Market, Sunny Side, Old Mill,
Riverside Supplies, Kettle and Cup, Hillside Books, Pine Street Toys, Copper Pot, The Wool Shop, Lark & Finch, City Lights""")
ADJECTIVES = _items("""
old, new, clean, dirty, heavy, light, warm, cold, soft, hard, bright, dark, loud, quiet, fast, slow, cheap, expensive, long, short,
wide, narrow, full, empty, wet, dry, fresh, tidy, strong, weak, round, square, smooth, rough, simple, pretty, ugly, broken, useful""")

OPPOSITES = dict(
    pair.split("/")
    for pair in _words("""
hot/cold big/small fast/slow old/new happy/sad light/dark heavy/light up/down left/right open/closed full/empty wet/dry clean/dirty
early/late loud/quiet hard/soft rich/poor strong/weak long/short wide/narrow high/low near/far easy/difficult cheap/expensive
first/last begin/end buy/sell push/pull love/hate win/lose day/night summer/winter inside/outside before/after always/never
young/old good/bad true/false safe/dangerous brave/afraid polite/rude thick/thin deep/shallow sweet/sour tall/short awake/asleep
give/take arrive/leave remember/forget find/lose send/receive accept/refuse repair/break urgent/unimportant ask/answer
working/broken present/absent cancel/keep more/less many/few black/white yes/no on/off in/out alive/dead sharp/blunt
smooth/rough lend/borrow laugh/cry tidy/messy same/different possible/impossible careful/careless patient/impatient""")
)
PLURALS = dict(
    pair.split("/")
    for pair in _words("""
child/children man/men woman/women foot/feet tooth/teeth mouse/mice goose/geese person/people knife/knives leaf/leaves wolf/wolves
shelf/shelves box/boxes bus/buses glass/glasses dish/dishes watch/watches baby/babies city/cities story/stories party/parties
potato/potatoes tomato/tomatoes hero/heroes cat/cats dog/dogs house/houses tree/trees book/books car/cars key/keys day/days
sheep/sheep fish/fish lady/ladies country/countries family/families brush/brushes bench/benches loaf/loaves half/halves""")
)
PASTS = dict(
    pair.split("/")
    for pair in _words("""
go/went see/saw eat/ate drink/drank buy/bought bring/brought come/came do/did drive/drove fall/fell find/found get/got give/gave
have/had hear/heard keep/kept know/knew leave/left lose/lost make/made meet/met pay/paid put/put read/read ride/rode run/ran say/said
sell/sold send/sent sing/sang sit/sat sleep/slept speak/spoke stand/stood swim/swam take/took teach/taught tell/told think/thought
wear/wore win/won write/wrote break/broke choose/chose fly/flew grow/grew walk/walked play/played stop/stopped carry/carried
try/tried order/ordered return/returned cancel/cancelled arrive/arrived open/opened close/closed repair/repaired cook/cooked""")
)
SYNONYMS = dict(
    pair.split("/")
    for pair in _items("""
big/large, small/little, happy/glad, sad/unhappy, angry/cross, tired/sleepy, quick/fast, begin/start, end/finish, shut/close,
buy/purchase, mend/repair, fix/repair, ill/sick, pretty/beautiful, clever/smart, quiet/silent, rich/wealthy, present/gift, shop/store,
parcel/package, broken/damaged, urgent/pressing, soon/shortly, at once/immediately, ask/enquire, help/assist, odd/strange,
correct/right, wrong/incorrect, nearly/almost, hard/difficult, easy/simple, choose/pick, need/require, cheap/inexpensive,
refund/money back, swap/exchange, bill/invoice, complain/grumble, answer/reply, wait/be patient, thank/say thanks, whole/entire""")
)

GROUPS = {
    "animals": ANIMALS,
    "foods": FOODS,
    "colours": COLOURS,
    "cities": CITIES,
    "jobs": JOBS,
    "days": DAYS,
    "months": MONTHS,
    "clothes": _items("shirt, dress, skirt, trousers, jeans, socks, shoes, boots, gloves, hat, scarf, jacket, coat, jumper"),
    "tools": _items("hammer, screwdriver, drill, saw, spade, rake, ladder, broom, mop, bucket"),
    "furniture": _items("chair, table, sofa, desk, bed, shelf, cupboard, bookcase, drawer, stool"),
    "instruments": _items("guitar, piano, violin, drum, flute, trumpet, harp, cello"),
    "sports": _items("tennis, football, swimming, rowing, skiing, hockey, cricket, golf, rugby"),
    "appliances": _items("kettle, toaster, fridge, oven, microwave, dishwasher, washing machine, blender, iron, vacuum cleaner"),
    "vehicles": _items("car, bus, train, tram, lorry, bicycle, boat, ship, plane, scooter, van, taxi"),
}

LISTS = {
    "name": NAMES,
    "first": FIRST_NAMES,
    "last": LAST_NAMES,
    "place": PLACES,
    "thing": THINGS,
    "food": FOODS,
    "animal": ANIMALS,
    "city": CITIES,
    "colour": COLOURS,
    "size": SIZES,
    "material": MATERIALS,
    "day": DAYS,
    "month": MONTHS,
    "job": JOBS,
    "hobby": HOBBIES,
    "shop": SHOPS,
    "adj": ADJECTIVES,
    "count": NUMBER_WORDS[2:],
    "time": tuple(f"{hour} o'clock" for hour in NUMBER_WORDS[1:])
    + tuple(f"{hour}:{minute}" for hour in range(7, 22) for minute in ("15", "30", "45"))
    + _items("noon, midnight, half past nine, half past three, quarter to five, quarter past two"),
    "part": _items("morning, afternoon, evening, night"),
    "amount": tuple(str(n) for n in range(2, 60)),
    "price": tuple(f"{n} {unit}" for n in range(3, 250, 7) for unit in ("euros", "dollars", "pounds")),
    "date": tuple(f"{day} {month}" for month in MONTHS for day in range(1, 29, 3)),
    "weather": _items("rain, snow, wind, fog, sunshine, a storm, frost, thunder"),
}
