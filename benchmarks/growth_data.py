"""Preparing 10⁴ … 10⁷ short records: records a second, memory, the second start, the time of a batch.

    python benchmarks/growth_data.py                                  # 10⁴ to 10⁷, a vocabulary of words
    python benchmarks/growth_data.py --tokenizer=FOLDER --records=10000,1000000
    python benchmarks/growth_data.py --peer=PYTHON                    # beside the map of Hugging Face `datasets`

Generated JSON lines of --words words (Zipf over 20,000) and one of four labels; 1 % is carved out as dev. Each start is
a process of its own: first with an empty cache, then again. CPU seconds are those of all processes, the worker
processes too; "a second on all cores" is records · cores / CPU seconds, the rate where nothing else runs. Memory is the
largest sum over all processes of what is not backed by a file (Linux). A batch is 32 rows of 64 tokens, the mean over
200 steps. --peer is a Python with `datasets` and `tokenizers`: it maps the same file through the same words (or the
same tokenizer) in batches on all cores, without labels, checks or packing.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np
from record import CORES, Claim, save

from mtl_jax.data import corpus, sampler
from mtl_jax.data.files import workers
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.tokenizers import PretrainedTokenizer, WordVocabulary

ROW_LENGTH, ROWS, STEPS = 64, 32, 200
GOALS = {"words": 40_000, "pretrained": 15_000}
MAP = """
import collections, datasets, re, sys
path, folder, cores, cache = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
rows = datasets.load_dataset("json", data_files=path, split="train", cache_dir=cache)
if folder:
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    tokenizer.no_padding(); tokenizer.no_truncation()
    encode = lambda batch: {"ids": [e.ids for e in tokenizer.encode_batch(batch["text"])]}
else:
    split = re.compile(r"\\w+(?:'\\w+)*|[^\\w\\s]").findall
    counts = collections.Counter()
    for batch in rows.iter(10_000):
        for text in batch["text"]:
            counts.update(split(text.lower()))
    ids = {word: n for n, (word, _) in enumerate(counts.most_common())}
    encode = lambda batch: {"ids": [[ids[w] for w in split(text.lower())] for text in batch["text"]]}
rows.map(encode, batched=True, num_proc=cores, remove_columns=rows.column_names)
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,100000,1000000,10000000", help="numbers, with commas")
    parser.add_argument("--words", type=int, default=12, help="of a record")
    parser.add_argument("--tokenizer", default="", help="folder with tokenizer.json; by default the words of train")
    parser.add_argument("--peer", default="", help="a Python that has `datasets`")
    parser.add_argument("--folder", default="", help="for the files; they are deleted")
    parser.add_argument("--start", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(start(options.start, options.tokenizer)))
        return
    results = []
    for count in map(int, options.records.split(",")):
        with tempfile.TemporaryDirectory(dir=options.folder or None) as folder:
            results.append(measure(pathlib.Path(folder), count, options))
        print(json.dumps(results[-1]), file=sys.stderr)
    report(results, options)


def measure(folder: pathlib.Path, count: int, options: argparse.Namespace) -> dict[str, float]:
    """The figures of one number of records."""
    path = folder / "records.jsonl"
    generate(path, count, options.words)
    environment = {**os.environ, "MTL_JAX_CACHE": str(folder / "cache")}
    command = [sys.executable, __file__, f"--start={path}", f"--tokenizer={options.tokenizer}"]
    starts = [json.loads(subprocess.run(command, env=environment, check=True, stdout=-1).stdout) for _ in range(2)]
    first, second = starts
    result = {"records": count, **first, "again_seconds": second["seconds"], "again_cpu": second["cpu"]}
    result["disk"] = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file()) / 1e9
    if options.peer:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        arguments = [str(path), options.tokenizer, str(CORES), str(folder / "peer")]
        subprocess.run([options.peer, "-c", MAP, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        result["peer_cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        result["peer_seconds"] = time.perf_counter() - began
        shutil.rmtree(folder / "peer", ignore_errors=True)
    return result


def generate(path: pathlib.Path, count: int, words: int) -> None:
    """JSON lines of records with a text and a label."""
    rng = np.random.default_rng(0)
    names = np.asarray([f"w{n}" for n in range(20_000)])
    shares = np.cumsum(1 / np.arange(1, len(names) + 1))
    with path.open("w") as file:
        for begin in range(0, count, 10_000):
            number = min(10_000, count - begin)
            texts = names[np.searchsorted(shares / shares[-1], rng.random((number, words)))]
            labels = rng.integers(0, 4, number)
            lines = zip(texts, labels, strict=True)
            file.writelines(f'{{"text": "{" ".join(t)}", "label": "{"abcd"[n]}"}}\n' for t, n in lines)


def start(path: str, folder: str) -> dict[str, float]:
    """Prepares the records of a file, and draws batches; in this process and its workers."""
    entry = {"reader": "jsonl", "path": path, "text": ("text",), "dev_fraction": 0.01}
    tokenizer = PretrainedTokenizer(folder) if folder else WordVocabulary()
    memory = Memory()
    began = time.perf_counter()
    data = corpus.load({"d": entry}, [LabelSpec("t", "d", "label")], tokenizer, row_length=ROW_LENGTH)
    seconds = time.perf_counter() - began
    workers.close()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    batches = sampler.BatchSampler({"d": data.rows["d"]["train"]}, data.layout, 0, ROWS)
    batches.batch(0)
    before = time.process_time()
    for step in range(1, STEPS + 1):
        batches.batch(step)
    batch = (time.process_time() - before) / STEPS
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    return {"seconds": seconds, "cpu": cpu, "memory": memory.peak() / 1e9, "batch_us": 1e6 * batch}


class Memory:
    """The largest memory of this process and its children that no file backs, in bytes; looked at in a thread."""

    def __init__(self) -> None:
        self._peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def peak(self) -> int:
        """Ends the thread; the largest so far."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._peak = max(self._peak, sum(map(self._of, pathlib.Path("/proc").glob("[0-9]*"))))

    def _of(self, process: pathlib.Path) -> int:
        try:
            lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        except OSError:
            return 0
        mine = process.name == str(os.getpid()) or lines["PPid"].strip() == str(os.getpid())
        return 1024 * int(lines.get("RssAnon", "0").split()[0]) if mine else 0


def report(results: list[dict[str, float]], options: argparse.Namespace) -> None:
    """The table, and the claims about the largest numbers."""
    kind = "pretrained" if options.tokenizer else "words"
    header = (
        "records",
        "a second",
        "CPU s",
        "a second on all cores",
        "memory GB",
        "cache GB",
        "again s",
        "batch CPU µs",
    )
    rows = [(*header, "map of datasets: CPU s", "s") if options.peer else header]
    for one in results:
        rate = one["records"] * CORES / one["cpu"]
        row = [f"{one['records']:,}", f"{one['records'] / one['seconds']:,.0f}", f"{one['cpu']:.1f}", f"{rate:,.0f}"]
        row += [f"{one['memory']:.2f}", f"{one['disk']:.2f}", f"{one['again_seconds']:.1f}", f"{one['batch_us']:.0f}"]
        rows.append((*row, f"{one['peer_cpu']:.1f}", f"{one['peer_seconds']:.1f}") if options.peer else tuple(row))
    last = results[-1]
    rate, flat = last["records"] * CORES / last["cpu"], last["batch_us"] / results[0]["batch_us"]
    what = f"{last['records']:,} records of {options.words} words, {kind}"
    values = (
        (f"{what}: records a second on {CORES} cores, by CPU seconds", f"≥ {GOALS[kind]:,}", rate, rate >= GOALS[kind]),
        (f"{what}: memory in GB", "≤ 2", last["memory"], last["memory"] <= 2),
        (f"{what}: seconds of the second start", "≤ 15", last["again_seconds"], last["again_seconds"] <= 15),
        (f"{what}: CPU time of a batch / that of {results[0]['records']:,} records", "≤ 1.1", flat, flat <= 1.1),
    )
    claims = [Claim(text, goal, value, value, value, bool(reached)) for text, goal, value, reached in values]
    save(f"growth_data_{kind}", claims, {"by the number of records": rows}, results)


if __name__ == "__main__":
    main()
