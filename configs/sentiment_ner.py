"""Sentiment of movie reviews and named entities of CoNLL-2003 with word embeddings and a BiLSTM.

    python launch.py --config=configs/sentiment_ner.py --workdir=runs/sentiment_ner

Embeddings and the first layer are shared, the second layer is not; no pretrained vectors. Ten minutes on 2 CPU cores.

Data: movie_reviews, conll2003.
Scores: test sentiment accuracy 0.788, entity F1 0.722.
"""

from ml_collections import ConfigDict

from mtl_jax.config import default

from .newsgroups_conll import add_conll


def get_config():
    config = default.get_config()
    default.add_dataset(
        config,
        "reviews",
        reader="csv",
        origin="movie_reviews",
        path="movie_reviews/data",
        splits={"train": "combined_movie_reviews.csv"},
        text=("text",),
        dev_fraction=0.05,
        test_fraction=0.1,
        drop_duplicates="train",
        options={"empty": "drop"},
    )
    default.add_task(
        config, "sentiment", kind="classification", dataset="reviews", label="label", metrics=("accuracy",)
    )
    add_conll(config)
    config.tokenizer = ConfigDict(
        {**config.tokenizer.to_dict(), "kind": "words", "lowercase": True, "min_count": 2, "max_vocab_size": 40000}
    )
    config.sharing.trunk = "layer_00"
    config.data.row_length = 256
    config.data.rows_per_block = 8
    config.data.overflow = "truncate"
    config.model.layer_type = "bilstm"
    config.model.num_layers = 2
    config.model.dropout = 0.3
    config.optimizer.learning_rate = 2e-3
    config.training.eval_every = 500
    config.training.checkpoint_every = 250
    return config
