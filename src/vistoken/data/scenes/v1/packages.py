"""What vistoken-scenes 1 fetches beside the icons: cut-outs, clip art, photographs, easy-VQA."""

from __future__ import annotations

from vistoken.data.scenes.archives import DebianPackage, WheelFiles
from vistoken.data.scenes.sources import Credit

STAMPS = DebianPackage(
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "usr/share/tuxpaint/stamps",
)
CLIP_ART = DebianPackage(
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "usr/share/openclipart/svg",
)
_IMAGES = "skimage/data"
SCIKIT_IMAGE = WheelFiles(
    "scikit-image",
    "0.26.0",
    {
        f"{_IMAGES}/brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
        f"{_IMAGES}/grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
        f"{_IMAGES}/gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        f"{_IMAGES}/hubble_deep_field.jpg": (
            "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4"
        ),
        f"{_IMAGES}/astronaut.png": (
            "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"
        ),
        f"{_IMAGES}/camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        f"{_IMAGES}/chelsea.png": (
            "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"
        ),
        f"{_IMAGES}/coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        f"{_IMAGES}/coins.png": "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        f"{_IMAGES}/motorcycle_left.png": (
            "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179"
        ),
        f"{_IMAGES}/horse.png": "c7fb60789fe394c485f842291ea3b21e50d140f39d6dcb5fb9917cc178225455",
        f"{_IMAGES}/page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3",
        f"{_IMAGES}/rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    },
)
_LEARN = "sklearn/datasets/images"
SCIKIT_LEARN = WheelFiles(
    "scikit-learn",
    "1.9.1",
    {
        f"{_LEARN}/china.jpg": ("8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
        f"{_LEARN}/flower.jpg": (
            "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638"
        ),
    },
)
_MEDIA = "gradio/media_assets/images"
GRADIO = WheelFiles(
    "gradio",
    "6.31.0",
    {
        f"{_MEDIA}/cheetah.jpg": "29b0090f5ec471dad0264abc20ecc3c80a0133a63a03d11df920e39a093fe6c8",
        f"{_MEDIA}/cheetah1.jpg": (
            "35550bfbba996e59c242af00f6a14a9c0d055dfbc52ad069a1a4e8c1c39ca095"
        ),
        f"{_MEDIA}/lion.jpg": "4c45ece00075f152cb2e6cfd5f1dfd7dc8e83042264685b4f470026240eff3ef",
        f"{_MEDIA}/tower.jpg": "f57f96f7a71f89739d27ae8ffc09f73cd2f17415d16c94d42dcb0d571f4eb0ee",
    },
)
# Where each photograph of the test split comes from, by its name in photographs.yaml.
PHOTOGRAPHS: dict[str, tuple[WheelFiles, str]] = {
    "astronaut": (SCIKIT_IMAGE, f"{_IMAGES}/astronaut.png"),
    "camera": (SCIKIT_IMAGE, f"{_IMAGES}/camera.png"),
    "chelsea": (SCIKIT_IMAGE, f"{_IMAGES}/chelsea.png"),
    "coffee": (SCIKIT_IMAGE, f"{_IMAGES}/coffee.png"),
    "coins": (SCIKIT_IMAGE, f"{_IMAGES}/coins.png"),
    "rocket": (SCIKIT_IMAGE, f"{_IMAGES}/rocket.jpg"),
    "motorcycle": (SCIKIT_IMAGE, f"{_IMAGES}/motorcycle_left.png"),
    "horse": (SCIKIT_IMAGE, f"{_IMAGES}/horse.png"),
    "page": (SCIKIT_IMAGE, f"{_IMAGES}/page.png"),
    "china": (SCIKIT_LEARN, f"{_LEARN}/china.jpg"),
    "flower": (SCIKIT_LEARN, f"{_LEARN}/flower.jpg"),
    "cheetah-running": (GRADIO, f"{_MEDIA}/cheetah.jpg"),
    "cheetah": (GRADIO, f"{_MEDIA}/cheetah1.jpg"),
    "lion": (GRADIO, f"{_MEDIA}/lion.jpg"),
    "tower": (GRADIO, f"{_MEDIA}/tower.jpg"),
}
# Surfaces that some cut-outs are pasted on, with the words for them; none is a test photograph.
SURFACES: dict[str, str] = {
    "bricks": f"{_IMAGES}/brick.png",
    "grass": f"{_IMAGES}/grass.png",
    "gravel": f"{_IMAGES}/gravel.png",
    "stars": f"{_IMAGES}/hubble_deep_field.jpg",
}
# What a surface may itself be said to show: never pasted on it, nor asked for as absent.
SEEN_ON_SURFACES: dict[str, frozenset[str]] = {
    "stars": frozenset({"star", "planet", "moon", "sun", "comet"}),
    "grass": frozenset({"seedling", "clover"}),
    "gravel": frozenset({"rock"}),
}
EASY_VQA = WheelFiles(
    "easy-vqa",
    "1.0",
    {"easy_vqa/data/": ""},
    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
)

_RELEASE = "scikit-image 0.26.0"
CREDITS: dict[str, Credit] = {
    "stamps": Credit(
        "Tux Paint stamps",
        "the Tux Paint contributors",
        "GPL-2.0-or-later",
        f"{STAMPS.name} {STAMPS.version}",
        f"sha256:{STAMPS.sha256}",
    ),
    "clip-art": Credit(
        "Open Clip Art Library",
        "its contributors",
        "CC-PDDC",
        f"{CLIP_ART.name} {CLIP_ART.version}",
        f"sha256:{CLIP_ART.sha256}",
    ),
    "surfaces": Credit(
        "brick, grass, gravel, Hubble deep field",
        "CC0Textures; NASA",
        "CC0-1.0 and public domain",
        _RELEASE,
    ),
    "photographs of scikit-image": Credit(
        "astronaut, camera, chelsea, coffee, coins, motorcycle, horse, page, rocket",
        "NASA; L. Varshney; S. van der Walt; R. Michetti; A. Preuss; SpaceX; and others",
        "CC0-1.0, public domain, or as the package's own notes say",
        _RELEASE,
    ),
    "photographs of scikit-learn": Credit(
        "china, flower", "danielbuechele; vultilion", "CC-BY-2.0", "scikit-learn 1.9.1"
    ),
    "photographs of gradio": Credit(
        "cheetahs, lion, tower",
        "not stated in the package",
        "package: Apache-2.0; the photographs' own terms are not stated",
        "gradio 6.31.0",
    ),
    "easy-vqa": Credit(
        "easy-VQA", "Victor Zhou", "MIT", "easy-vqa 1.0", f"sha256:{EASY_VQA.wheel}"
    ),
}
