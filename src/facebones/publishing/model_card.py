"""The README.md of a published model: what it is, how it is used, what was measured of it, and how it was made.

Every number is read from the run's files. What nobody has measured is not written, or is said to be unknown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from facebones.backbones.base import IMAGE_SIZE
from facebones.data.preprocessing import OURS
from facebones.errors import DataError, counted
from facebones.publishing.finished_run import FinishedRun
from facebones.publishing.run_metrics import MeasuredMetric
from facebones.reporting.runs import OTHER_SHAPE, SHORT_REVISION, number, unexpected
from facebones.reporting.words import headline, markdown_table, metric_words, set_words
from facebones.system.number_format import percent, percent_interval, small_rate

LIBRARY = "facebones"
HOMEPAGE = "https://github.com/facebones/facebones"
PIPELINE = "image-feature-extraction"  # the Hub's name for what an embedding is
TAGS = ("face-recognition", "face-verification", LIBRARY)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card is written from.

    Attributes:
        repository: "owner/name".
        license: identifier, as the Hub has them.
        run: the model.
        parameters: of the network as it was trained.
        macs: likewise, for one face.
        metrics: measured of the model.
        thresholds: the content of its file of thresholds, or None.
    """

    repository: str
    license: str
    run: FinishedRun
    parameters: int
    macs: int
    metrics: Sequence[MeasuredMetric]
    thresholds: Mapping[str, Any] | None

    def write(self) -> str:
        """The text of README.md."""
        name = self.repository.partition("/")[2]
        parts = [
            _metadata(self.license, self.run.network.name),
            f"# {_cell(name)}\n",
            self._summary(),
            self._usage(),
            self._accuracy(),
            self._thresholds(),
            self._training(),
            self._limits(),
        ]
        return "\n".join(part for part in parts if part)

    def _summary(self) -> str:
        network = self.run.network
        rows = [
            ("backbone", f"`{_cell(network.name)}`"),
            ("embedding", counted(network.embedding_size, "number")),
            ("input", _input_words(network)),
            ("parameters", f"{self.parameters:,}"),
            ("MACs for one face", f"{self.macs:,}"),
            ("licence of the weights", f"`{self.license}`"),
        ]
        told = f"A face-recognition network, trained and measured with [{LIBRARY}]({HOMEPAGE}).\n\n"
        return told + markdown_table(("", ""), rows)

    def _usage(self) -> str:
        address = f"hf:{self.repository}"
        plugins = [str(name).rpartition("/")[2] for name in self.run.recipe.get("import", ())]
        needs = f"It needs the plug-ins {', '.join(map(_cell, plugins))} (`--import`).\n\n" if plugins else ""
        return (
            f"## Use\n\n{needs}```sh\npip install '{LIBRARY}[hub]'\n"
            f"facebones match a.jpg b.jpg --model {address}\n"
            f"facebones evaluate pairs --model {address} --data lfw.bin\n```\n\n"
            f'```python\nimport facebones\n\nmodel = facebones.load_model("{address}")\n'
            'embeddings = model.embed(["a.jpg", "b.jpg"], detector="auto")  # (2, D) float32\n```\n'
        )

    def _accuracy(self) -> str:
        if self.metrics:
            return _measured_section(self.metrics)
        rows = [
            (_cell(row["set"]), percent(row["accuracy"]))
            for row in self.run.result["final"]
            if row["accuracy"] is not None
        ]
        if not rows:
            return "## Accuracy\n\nNot measured.\n"
        table = markdown_table(("set", "accuracy"), rows, right=(1,))
        return f"## Accuracy\n\nValidation at the last step of the training, without intervals:\n\n{table}"

    def _thresholds(self) -> str:
        if self.thresholds is None:
            return ""
        try:
            return _thresholds_section(self.thresholds)
        except OTHER_SHAPE as error:
            raise unexpected("the file of thresholds", error) from error

    def _training(self) -> str:
        recipe, result = self.run.recipe, self.run.result
        size = " of ".join(
            counted(result[key], noun, plural)
            for key, noun, plural in (
                ("training_images", "image", ""),
                ("training_identities", "identity", "identities"),
            )
            if isinstance(result.get(key), int)
        )
        training, optimizer = recipe["training"], recipe["optimizer"]
        rows = [
            ("data", ": ".join(filter(None, [f"`{_cell(result.get('training_data', 'unknown'))}`", size]))),
            ("loss", f"`{_cell(recipe['head']['name'])}`"),
            ("optimizer", f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}"),
            ("epochs", f"{training['epochs']}{', stopped early' if result.get('stopped_early') else ''}"),
            ("images in a step", str(training["batch_size"] * training["accumulation_steps"])),
            ("seed", str(training["seed"])),
            ("made with", _versions_words(self.run.environment)),
        ]
        whole = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True).replace("```", "")
        return (
            f"## Training\n\n{markdown_table(('', ''), rows)}\n"
            f"<details><summary>The recipe, without paths</summary>\n\n```yaml\n{whole}```\n\n</details>\n"
        )

    def _limits(self) -> str:
        return (
            "## Limits\n\n"
            "Accuracy on other photos may be lower than on the sets above. Error rates differ between groups of people;"
            " measure them on your own data before you decide about people by this model"
            f" ([how]({HOMEPAGE}/blob/main/docs/trust.md)). The terms of the training data hold beside the licence.\n"
        )


def _metadata(license_name: str, backbone: str) -> str:
    content = {
        "library_name": LIBRARY,
        "license": license_name,
        "pipeline_tag": PIPELINE,
        "tags": [*TAGS, backbone],
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False)}---\n"


def _input_words(network: Any) -> str:
    known = {"colour": OURS.colour, "mean": OURS.mean, "scale": OURS.scale, **(network.known_input or {})}
    return (
        f"aligned faces of {IMAGE_SIZE}x{IMAGE_SIZE} pixels, {known['colour'].upper()},"
        f" (x - {known['mean']:g}) / {known['scale']:g}"
    )


def _measured_section(metrics: Sequence[MeasuredMetric]) -> str:
    sets: dict[Any, list[MeasuredMetric]] = {}
    for one in metrics:
        sets.setdefault(one.metric.evaluated_set, []).append(one)
    shown = []
    for evaluated, measured in sets.items():
        chosen = headline([one.metric for one in measured]) or [one.metric for one in measured]
        shown += [(evaluated, one) for one in measured if any(one.metric is metric for metric in chosen)]
    rows = [
        (
            _cell(set_words(evaluated._asdict())),
            _cell(metric_words(one.metric)),
            _value_words(one),
            _protocol_words(one),
        )
        for evaluated, one in shown
    ]
    told = [_interval_sentence(one.interval) for _, one in shown if one.interval is not None]
    notes = [*dict.fromkeys(told), "All metrics are in `config.json`."]
    table = markdown_table(("set", "metric", "value", "protocol"), rows, right=(2,))
    return f"## Accuracy\n\n{table}\n{' '.join(notes)}\n"


def _value_words(one: MeasuredMetric) -> str:
    return (
        percent(one.value) if (held := one.interval) is None else percent_interval(one.value, held["low"], held["high"])
    )


def _protocol_words(one: MeasuredMetric) -> str:
    """The protocol with its version, and how the network was computed if that is not the usual way."""
    unusual = [text for key, usual in (("runtime", "eager"), ("precision", "fp32"))
               if (text := one.computed.get(key)) not in (None, usual)]  # fmt: skip
    computed = f", {_cell(' '.join(map(str, unusual)))}" if unusual else ""
    return f"`{_cell(one.metric.protocol)}` of {_versions_words(one.versions)}{computed}"


def _interval_sentence(interval: Mapping[str, Any]) -> str:
    level, method = interval.get("level"), _cell(interval.get("method", "unknown"))
    drawn = interval.get("replicates")
    replicates = f", {drawn:,} replicates" if isinstance(drawn, int) and drawn else ""
    of = f"; resampled: {_cell(interval['resampled'])}{replicates}" if interval.get("resampled") else ""
    share = f"{100 * level:g} %" if isinstance(level, float) else "confidence"
    return f"In brackets: {share} intervals ({method}{of})."


def _versions_words(versions: Mapping[str, Any]) -> str:
    """Version and commit of facebones, and of torch if it is known."""
    commit = versions.get("git_revision") or versions.get("commit")
    told = f"{LIBRARY} {_cell(versions.get('facebones') or 'of unknown version')}"
    told += f" at {_cell(commit)[:SHORT_REVISION]}" if commit else ""
    return told + (f", torch {_cell(versions['torch'])}" if versions.get("torch") else "")


def _thresholds_section(content: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{number(one['threshold']):.4f}",
            small_rate(number(one["false_match_rate"])),
            f"{100 * number(one['confidence']):g} %",
            percent(number(one["true_accept_rate"])),
            f"{int(number(one['impostors'])):,}",
        )
        for one in content["thresholds"]
    ]
    if not rows:
        raise DataError("the file of thresholds holds none; make it again by `facebones calibrate`")
    sets = ", ".join(_cell(one["set"]) for one in content["sets"])
    columns = ("cosine from", "false match rate at most", "with confidence", "genuine pairs accepted", "impostor pairs")
    table = markdown_table(columns, rows, right=range(len(columns)))
    mirror = "embedding of image and mirror image added" if content["flip"] else "embedding of the image alone"
    return (
        f"## Thresholds\n\nTwo faces are taken for one person from this cosine on. Chosen on {sets} ({mirror}); the"
        f" promise holds for photos like those. `facebones match` uses the lowest rate.\n\n{table}"
    )


def _cell(content: Any) -> str:
    """A text from a file, on one line, that does not end a cell of a table and is no markup."""
    return re.sub(r"([|`<>\[\]\\])", r"\\\1", " ".join(str(content).split()))
