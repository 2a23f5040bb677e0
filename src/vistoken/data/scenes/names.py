"""What the icon scenes may show: a curated list of nameable drawings and how they relate.

Emoji labels are not used as they are: many are plural, carry no article, describe a state
("closed book") or repeat a thing from another side ("oncoming bus").
Each entry below is the icon's name in the icon sets, with our everyday word where it differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

# "icon-name" or "icon-name=everyday word"; "~" marks words used without "a" (bread, popcorn).
_TABLE: dict[str, str] = {
    "animal": """
        monkey gorilla dog poodle wolf fox cat lion tiger leopard horse moose donkey unicorn
        zebra deer cow pig ram=sheep goat camel llama giraffe elephant rhinoceros=rhino
        hippopotamus=hippo mouse rat hamster rabbit chipmunk=squirrel beaver hedgehog bat bear
        polar-bear koala panda sloth kangaroo turkey rooster chicken baby-chick=chick penguin
        dove eagle duck swan owl flamingo peacock parrot frog crocodile turtle lizard snake
        dragon sauropod=dinosaur whale dolphin seal fish tropical-fish blowfish shark octopus
        jellyfish crab lobster shrimp squid oyster snail butterfly bug=caterpillar ant
        honeybee=bee beetle lady-beetle=ladybug spider scorpion mosquito fly worm
    """,
    "plant": """
        rose sunflower tulip lotus seedling potted-plant evergreen-tree=pine deciduous-tree=tree
        palm-tree cactus shamrock=clover maple-leaf mushroom bouquet spider-web=web feather
        spiral-shell=shell coral
    """,
    "food": """
        melon watermelon tangerine=orange lemon banana pineapple mango red-apple=apple pear
        peach strawberry kiwi-fruit=kiwi tomato olive coconut avocado eggplant potato carrot
        ear-of-corn=~corn hot-pepper=chili bell-pepper cucumber broccoli=~broccoli onion
        bread=~bread croissant baguette-bread=baguette pretzel bagel waffle cheese-wedge=~cheese
        poultry-leg=chicken~leg cut-of-meat=steak bacon=~bacon hamburger=burger pizza=~pizza
        hot-dog sandwich taco burrito egg cooking=frying~pan popcorn=~popcorn butter=~butter
        rice-ball spaghetti=~spaghetti sushi=~sushi dumpling soft-ice-cream=ice~cream~cone
        doughnut=donut cookie birthday-cake shortcake=cake cupcake pie chocolate-bar=~chocolate
        candy=~candy lollipop honey-pot=~honey baby-bottle glass-of-milk=~milk hot-beverage=cup
        teapot wine-glass cocktail-glass=cocktail beer-mug=beer bubble-tea ice=ice~cube spoon
        kitchen-knife=knife jar
    """,
    "place": """
        compass volcano mountain desert-island=island stadium rock wood=log hut house hospital
        bank school factory castle statue-of-liberty=statue church fountain tent ferris-wheel
        roller-coaster bus-stop world-map=map
    """,
    "vehicle": """
        locomotive=train high-speed-train tram bus minibus=van ambulance fire-engine=fire~truck
        police-car taxi automobile=car pickup-truck delivery-truck=truck tractor racing-car
        motorcycle motor-scooter=scooter manual-wheelchair=wheelchair bicycle kick-scooter
        skateboard roller-skate sailboat canoe speedboat ship airplane=plane helicopter
        satellite rocket flying-saucer=ufo parachute
    """,
    "street": """
        oil-drum=barrel fuel-pump=gas~pump wheel vertical-traffic-light=traffic~light stop-sign
        anchor ring-buoy=life~ring police-car-light=siren shopping-cart fire-extinguisher
    """,
    "sky": """
        crescent-moon=moon sun ringed-planet=planet star rainbow cloud tornado snowflake snowman
        comet fire=~fire droplet=drop umbrella cloud-with-rain=rain~cloud
        high-voltage=lightning~bolt
    """,
    "play": """
        jack-o-lantern christmas-tree balloon firecracker ribbon wrapped-gift=gift ticket trophy
        sports-medal=medal soccer-ball baseball basketball volleyball american-football=football
        tennis=racket flying-disc=frisbee bowling=bowling~pin boxing-glove goal-net=goal ice-skate
        fishing-pole=fishing~rod diving-mask sled curling-stone yo-yo=yoyo kite water-pistol
        pool-8-ball crystal-ball magic-wand=wand video-game=game~controller joystick
        slot-machine game-die=dice puzzle-piece teddy-bear mirror-ball=disco~ball
        chess-pawn=pawn artist-palette=palette framed-picture=painting thread=~thread yarn=~yarn
        knot bullseye=target boomerang
    """,
    "clothing": """
        necktie=tie t-shirt=shirt scarf coat dress handbag backpack running-shoe=sneaker
        hiking-boot=boot high-heeled-shoe=high~heel crown top-hat graduation-cap billed-cap=cap
        military-helmet=helmet lipstick ring gem-stone=diamond purse folding-hand-fan=fan
    """,
    "music": """
        saxophone trumpet accordion guitar musical-keyboard=piano violin banjo drum flute bell
        microphone radio megaphone musical-note
    """,
    "device": """
        mobile-phone=phone battery electric-plug=plug laptop desktop-computer=computer printer
        keyboard floppy-disk abacus movie-camera=projector clapper-board television camera
        light-bulb flashlight watch alarm-clock stopwatch mantelpiece-clock=clock
        hourglass-done=hourglass thermometer
    """,
    "object": """
        candle red-paper-lantern=lantern green-book=book notebook newspaper coin money-bag
        credit-card envelope package=box postbox=mailbox pencil fountain-pen=pen paintbrush
        crayon briefcase file-folder=folder calendar clipboard pushpin=pin paperclip
        straight-ruler=ruler wastebasket=trash~can locked=lock key luggage=suitcase
        couch-and-lamp=couch chair bed door mirror window toilet plunger bathtub mouse-trap
        razor safety-pin broom basket bucket soap=~soap toothbrush sponge coffin
        headstone=gravestone identification-card=id~card
    """,
    "tool": """
        hammer axe pick=pickaxe dagger bomb shield carpentry-saw=saw wrench screwdriver gear
        balance-scale=scale hook toolbox magnet ladder test-tube microscope telescope syringe
        pill adhesive-bandage=bandage stethoscope sewing-needle=needle bow-and-arrow
    """,
}

# Things that one picture may rightly be called by more than one of these words. Asking for one of
# them as an absent object, or as "zero", while another is shown would teach a wrong answer.
_CONFUSABLE = """
    tie,shirt / egg,frying pan / fish,fishing rod / island,palm tree / firecracker,bomb
    cup,trophy / jack o lantern,lantern / mouse trap,cheese / goal,soccer ball
    couch,chair / racket,baseball / pin,bowling pin / bat,mouse
    dog,poodle,wolf,fox / cat,lion,tiger,leopard / horse,donkey,zebra,unicorn / monkey,gorilla
    sheep,goat / mouse,rat,hamster,squirrel / deer,moose
    bear,polar bear,teddy bear,panda,koala / chicken,rooster,chick,turkey,chicken leg
    duck,swan / dinosaur,dragon,crocodile,lizard / dove,eagle,parrot,peacock,flamingo
    fish,tropical fish,blowfish,shark,dolphin,whale,seal / crab,lobster,shrimp,oyster
    octopus,squid,jellyfish / shell,snail,oyster / bee,fly,mosquito,ant,beetle,ladybug,bat
    worm,caterpillar,snake / spider,web / beaver,hedgehog / rose,sunflower,tulip,lotus,bouquet
    tree,pine,palm tree,christmas tree / seedling,potted plant,clover,maple leaf,cactus
    orange,lemon,peach,mango,apple,tomato,coconut / melon,watermelon / chili,bell pepper
    bread,baguette,croissant,bagel,pretzel,donut / burger,sandwich,hot dog,taco,burrito
    cake,birthday cake,cupcake,pie,waffle / cookie,chocolate / candy,lollipop
    rice ball,sushi,dumpling / bubble tea,milk,wine glass,beer,cocktail,cup,teapot
    ice cube,drop / jar,honey / mountain,volcano,island,rock / ice cream cone,cake
    house,hut,hospital,bank,school,factory,castle,church / train,high speed train,tram
    bus,van,bus stop,ambulance / car,taxi,police car,racing car,pickup truck,van
    truck,pickup truck,fire truck,tractor,ambulance / motorcycle,scooter,kick scooter,bicycle
    ship,speedboat,sailboat,canoe / satellite,ufo / siren,lantern / wheel,ferris wheel,life ring
    cloud,rain cloud / sun,star / snowflake,snowman / moon,planet,comet
    baseball,basketball,volleyball,soccer ball,football,pool 8 ball,crystal ball,disco ball
    bowling pin,baseball
    trophy,medal / skateboard,roller skate,ice skate / game controller,joystick
    gift,box,ribbon / thread,yarn,knot / painting,palette,paintbrush / shirt,coat,dress
    sneaker,boot,high heel / cap,helmet,top hat,graduation cap,crown
    purse,handbag,backpack,briefcase,suitcase,money bag / ring,diamond / piano,keyboard
    guitar,banjo,violin / saxophone,trumpet,flute / bell,siren / microphone,megaphone
    computer,laptop,television,printer / camera,projector / light bulb,flashlight,candle,lantern
    watch,clock,alarm clock,stopwatch,compass / book,notebook,calendar,folder,clipboard
    pen,pencil,crayon,paintbrush / pin,safety pin,needle / newspaper,ticket
    credit card,id card / basket,bucket,trash can,shopping cart / chair,couch / lock,key
    hammer,axe,pickaxe / knife,dagger / wrench,screwdriver / bathtub,toilet / soap,sponge
    pill,bandage / wine glass,beer / fire,candle / lotus,rose / frisbee,ufo / soap,butter,cheese
    honey,jar / lightning bolt,rain cloud / coral,tree / fishing rod,hook / saw,knife
    mirror,window,door / syringe,test tube,thermometer,needle / mailbox,envelope
    corn,pineapple / wand,broom / map,compass / egg,frying pan / coin,medal / plug,battery
    potato,egg / coffin,gravestone
"""


@dataclass(frozen=True)
class Name:
    """One nameable thing.

    Attributes:
        word: What answers call it: lower case, one to three words.
        drawing: Key of its drawing in the source.
        category: Family that adversarial negatives are drawn from.
        takes_article: False for words used without "a" ("bread").
    """

    word: str
    drawing: str
    category: str
    takes_article: bool = True

    @property
    def is_simple(self) -> bool:
        """Whether it is one short word, which most tokenizers keep in one or two pieces."""
        return " " not in self.word and len(self.word) <= 7


def _parse(entry: str, category: str) -> Name:
    drawing, _, word = entry.partition("=")
    plain = word or drawing.replace("-", " ")
    takes_article = not plain.startswith("~")
    return Name(plain.lstrip("~").replace("~", " "), drawing, category, takes_article)


@cache
def icon_names() -> tuple[Name, ...]:
    """List every thing the icon scenes may show, in table order.

    Returns:
        Names with unique words and unique drawings.
    """
    return tuple(
        _parse(entry, category) for category, text in _TABLE.items() for entry in text.split()
    )


@cache
def confusable_words() -> dict[str, frozenset[str]]:
    """Map each word to the words that could also be said of the same picture.

    Returns:
        Word to the other words of all its groups; words without rivals are absent.
    """
    rivals: dict[str, set[str]] = {}
    for line in _CONFUSABLE.strip().splitlines():
        for group in line.split("/"):
            words = {word.strip() for word in group.split(",")}
            for word in words:
                rivals.setdefault(word, set()).update(words - {word})
    return {word: frozenset(others) for word, others in rivals.items()}
