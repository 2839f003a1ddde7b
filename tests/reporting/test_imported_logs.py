"""Text logs of other trainers: every form, and logs that were killed, resumed or edited, or that are none."""

import io
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facebones import load_results
from facebones.cli.main import main
from facebones.errors import ConfigError, DataError
from facebones.importers import text_logs
from facebones.importers.run_from_logs import convert_logs
from facebones.importers.text_logs import Measurement, Message, Notice, Setting, Training, read_logs, read_message
from facebones.reporting.plots.report_plots import report_plots
from facebones.run_folder import read_metrics

TIME = "Training: 2022-02-17 20:06:49,083-"


def train(step, loss=12.3456, rate="0.020000", epoch=3, scale=" 65536"):
    fp16 = f"Fp16 Grad Scale: {scale}   " if scale else ""
    return (
        f"{TIME}Speed 3123.45 samples/sec   Loss {loss}   LearningRate {rate}   Epoch: {epoch}   Global Step: {step}   "
        f"{fp16}Required: 12 hours\n"
    )


def validate(step, name="lfw", accuracy=0.9955, highest=0.99567, xnorm=22.123456):
    return [
        f"{TIME}[{name}][{step}]XNorm: {xnorm:f}\n",
        f"{TIME}[{name}][{step}]Accuracy-Flip: {accuracy:1.5f}+-0.00350\n",
        f"{TIME}[{name}][{step}]Accuracy-Highest: {highest:1.5f}\n",
    ]


@pytest.fixture
def log(tmp_path):
    """Write lines, or bytes, as a log file."""

    def write(*lines, name="training.log"):
        path = tmp_path / name
        path.write_bytes(b"".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return path

    return write


@pytest.fixture
def converted(log, tmp_path):
    """Convert lines; returns the summary, with the content of the files written under their names."""

    def convert(*lines):
        output = tmp_path / "run"
        summary = convert_logs([log(*lines)], output)
        names = ("training_metrics", "validation_metrics", "source", "result")
        content = {name: json.loads((output / f"{name}.json").read_bytes()) for name in names}
        return {**summary, **content, "metrics": read_metrics(output / "metrics.jsonl")}

    return convert


def each(objects, key):
    return [one[key] for one in objects]


def whole(text):
    return read_message(Message(text, "", True))


# ----------------------------------------------------------------------------------------------- forms of lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Speed 1.50 samples/sec   Loss 2.5   LearningRate 0.020000   Epoch: 3   Global Step: 40   "
         "Fp16 Grad Scale: 65536   Required: 12 hours", (40, 3, 2.5, 0.02, 65536.0, 1.5)),
        ("Speed 1.50 samples/sec   Loss 2.5   LearningRate 0.020000   Epoch: 3   Global Step: 40   Required: 1 hours",
         (40, 3, 2.5, 0.02, math.nan, 1.5)),
        ("Speed 1.50 samples/sec   Loss 2.5   Epoch: 3   Global Step: 40   Fp16 Grad Scale:  2   Required: 1 hours",
         (40, 3, 2.5, math.nan, 2.0, 1.5)),
        ("Speed 1.50 samples/sec   Loss 2.5   Epoch: 3   Global Step: 40", (40, 3, 2.5, math.nan, math.nan, 1.5)),
        ("Speed 1 samples/sec Loss 2 LearningRate 2e-05 Epoch 3 Global Step 40 Fp16 Grad Scale 64 Required 1 hours",
         (40, 3, 2.0, 2e-5, 64.0, 1.0)),
        ("speed: 1 samples/s | loss: 2 | LR: 1E-3 | epoch:3/20 | global step:40/900 | required: 0.5 hours",
         (40, 3, 2.0, 1e-3, math.nan, 1.0)),
        ("Speed\t1 samples/sec,\tLoss=2.,\tLearning Rate=.5", None),
        ("Speed inf samples/sec   Loss nan   LearningRate 0.1   Epoch: 0   Global Step: 1   Required: nan hours",
         (1, 0, math.nan, 0.1, math.nan, math.nan)),
        ("Speed 1 samples/sec   Loss -inf   LearningRate 0.1   Epoch: 0   Global Step: 1   Required: 1 hours",
         (1, 0, math.nan, 0.1, math.nan, 1.0)),
        ("Speed 1 samples/sec   Loss 1e999   LearningRate 0.1   Epoch: 0   Global Step: 1   Required: 1 hours",
         (1, 0, math.nan, 0.1, math.nan, 1.0)),
        ("INFO:root:Speed 1 samples/sec Loss 2 Epoch: 3 Global Step: 40", (40, 3, 2.0, math.nan, math.nan, 1.0)),
        # more behind the hours: arcface_paddle's learning rates, and what forks add
        ("Speed 500.89 samples/sec   Loss 55.5692   Epoch: 0   Global Step: 200   Required: 104 hours, "
         "lr_backbone_value: 0.050000, lr_pfc_value: 0.100000", (200, 0, 55.5692, 0.05, math.nan, 500.89)),
        ("Speed 1 samples/sec   Loss 2   LearningRate 0.1   Epoch: 3   Global Step: 40   Required: 1 hours, lr: 0.5",
         (40, 3, 2.0, 0.1, math.nan, 1.0)),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40   Fp16 Grad Scale: 64   Required: 1 hours  |  "
         "QueueStats: 12 0.5", (40, 3, 2.0, math.nan, 64.0, 1.0)),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40   Required: 1 hours (GPU memory 12 GB)",
         (40, 3, 2.0, math.nan, math.nan, 1.0)),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40   Required: 1 hours   MI Loss 0.5   \t",
         (40, 3, 2.0, math.nan, math.nan, 1.0)),
        # not of this form, or not all of it
        ("Speed 1 samples/sec   Loss 2   Recognition Loss 3   Epoch: 3   Global Step: 40   Required: 1 hours", None),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40.5", None),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: -40", None),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 4" + "0" * 20, None),
        ("Speed 1 samples/sec   Loss 2x   Epoch: 3   Global Step: 40", None),
        ("Speed 1 samples/sec   Loss nano   Epoch: 3   Global Step: 40", None),
        ("Speed 1 samples/sec   Loss 1.2.3   Epoch: 3   Global Step: 40", None),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40   Fp16 Gr", None),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40   Required: 1 hoursSpeed 2 samples", None),
        ("Speed 1 samples/sec   Loss 2   Epoch: 3   Global Step: 40   Required: 1 hours Speed 1 samples/sec   Loss 2"
         "   Epoch: 3   Global Step: 50   Required: 1 hours", None),
    ],
)  # fmt: skip
def test_training_lines(text, expected):
    content = whole(text)
    if expected is None:
        assert content is None
    else:
        assert isinstance(content, Training)
        np.testing.assert_array_equal(content, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[lfw][2000]XNorm: 22.5", Measurement("lfw", 2000, {"xnorm": 22.5})),
        (
            "[cfp_fp][2000]Accuracy-Flip: 0.9+-0.01",
            Measurement("cfp_fp", 2000, {"accuracy": 0.9, "accuracy_std": 0.01}),
        ),
        ("[a b][1] Accuracy-Highest 1", Measurement("a b", 1, {"highest": 1.0})),
        ("[lfw][2000]Accuracy-Flip: 99.5+-0.3", None),
        ("[lfw][2000]Accuracy-Flip: 0.995", None),
        ("[lfw\x1b[31m][2000]XNorm: 22.5", None),
        ("[lfw\x07][2000]XNorm: 22.5", None),
        (": margin_list              [1.0, 0.5, 0.0]", Setting("margin_list", "[1.0, 0.5, 0.0]")),
        (": output                   ", Setting("output", "")),
        (": interclass_filtering_threshold0", Setting("interclass_filtering_threshold", "0")),
        (": a_name_as_long_as_the_column_[1, 2]", Setting("a_name_as_long_as_the_column_", "[1, 2]")),
        ("rank_id: 0", Notice()),
        ("Reducer buckets have been rebuilt in this iteration.", Notice()),
        ("(12000, 512)", Notice()),
        ("anything else", None),
        (": 12", None),
        ("[2000]Accuracy-Highest: 0.9", Notice()),
        ("[lfw][2000]Thrs-Highest: 1.25000", Notice()),
        ("[lfw][2000]Accuracy: 0.99500+-0.00350", Notice()),
        ("resume fail, backbone init successfully!", Notice()),
        ("backbone resume successfully!", Notice()),
        ("partial fc resume successfully!", Notice()),
        ("softmax weight mom init successfully!", Notice()),
        ("softmax weight init!", Notice()),
        ("softmax weight mom resume fail!", Notice()),
        ("loading bin 11000", Notice()),
        ("torch.Size([12000, 3, 112, 112])", Notice()),
        ("infer time 12.695148000000001", Notice()),
        ("lr-batch-epoch: 0.1 1999 0", Notice()),
        ("lr change to 0.010000000000000002", Notice()),
        ("saving 6", Notice()),
        ('INFO:root:Saved checkpoint to "../models/MF/model-y1-0006.params"', Notice()),
        ("INFO:root:Epoch[0] Train-acc=0.123", Notice()),
        ("INFO:root:Epoch[0] Time cost=1234.567", Notice()),
        ("[13:25:59] src/operator/nn/./cudnn/./cudnn_algoreg-inl.h:97: Running performance tests", Notice()),
        ("INFO:root:Epoch[0] Batch [0-20]\tSpeed: 512.31 samples/sec\tacc=0.000\tlossvalue=41.9", Notice(True)),
        ("INFO:root:Epoch[1] Batch [4900]\tSpeed: 184.91 samples/sec\tacc=0.005469", Notice(True)),
        ("Traceback (most recent call last):", None),
        ("RuntimeError: CUDA out of memory", None),
        ("saving 6 things", None),
    ],
)
def test_other_lines(text, expected):
    content = whole(text)
    assert content == expected and type(content) is type(expected)


@pytest.mark.parametrize("line", [train(12340), train(12340, scale=""), *validate(2000)])
def test_a_line_without_its_end_is_trusted_only_where_it_is_whole(line):
    text = line.removeprefix(TIME).rstrip("\n")
    assert read_message(Message(text, "", False)) == read_message(Message(text, "", True)) is not None
    for length in range(len(text)):
        assert read_message(Message(text[:length], "", False)) is None


# -------------------------------------------------------------------------------------------- what is written


def test_files(converted):
    run = converted(
        f"{TIME}rank_id: 0\n",
        f"{TIME}: margin_list              [1.0, 0.5, 0.0]\n",
        train(1000, loss=40.5, epoch=0),
        train(2000, loss="nan", epoch=1, scale=""),
        *validate(2000),
        *validate(2000, "cfp_fp", 0.9, 0.9),
        train(3000, epoch=1),
        *validate(4000, accuracy=0.98, highest=0.99567),
        *validate(4000, "cfp_fp", 0.95, 0.95),
    )
    assert run["training_metrics"] == [  # as the study's scripts read it: without the line whose loss is no number
        {"Loss": 40.5, "LearningRate": 0.02, "Epoch": 0, "GlobalStep": 1000, "Fp16GradScale": 65536},
        {"Loss": 12.3456, "LearningRate": 0.02, "Epoch": 1, "GlobalStep": 3000, "Fp16GradScale": 65536},
    ]
    shared = {"XNorm": 22.123456, "AccuracyFlipStd": 0.0035}
    assert run["validation_metrics"] == [
        {"Dataset": "lfw", "Step": 2000, "AccuracyFlip": 0.9955, "AccuracyHighest": 0.99567, **shared},
        {"Dataset": "cfp_fp", "Step": 2000, "AccuracyFlip": 0.9, "AccuracyHighest": 0.9, **shared},
        {"Dataset": "lfw", "Step": 4000, "AccuracyFlip": 0.98, "AccuracyHighest": 0.99567, **shared},
        {"Dataset": "cfp_fp", "Step": 4000, "AccuracyFlip": 0.95, "AccuracyHighest": 0.95, **shared},
    ]
    kinds = [(line["kind"], line["step"], line.get("set")) for line in run["metrics"]]
    assert kinds == [
        ("train", 1000, None), ("train", 2000, None), ("validation", 2000, "lfw"), ("validation", 2000, "cfp_fp"),
        ("train", 3000, None), ("validation", 4000, "lfw"), ("validation", 4000, "cfp_fp"),
    ]  # fmt: skip
    assert run["metrics"][0]["epoch"] == 1  # ours count from 1
    final = {row["set"]: (row["step"], row["accuracy"], row["best_accuracy"]) for row in run["result"]["final"]}
    assert final == {"lfw": (4000, 0.98, 0.99567), "cfp_fp": (4000, 0.95, 0.95)}
    assert run["result"]["best"]["step"] == 4000 and run["result"]["best"]["sets"] == {"lfw": 0.99567, "cfp_fp": 0.95}
    assert run["result"]["best"]["mean_accuracy"] == pytest.approx(0.965)
    assert run["source"]["configurations"] == [{"margin_list": "[1.0, 0.5, 0.0]"}]
    assert run["losses_not_finite"] == 1 and run["lines_not_understood"] == 0


def test_keys_are_those_of_our_own_metrics(converted, tiny_recipe, tmp_path):
    from facebones.training.run import train as train_ours

    theirs = converted(train(1), *validate(1))["metrics"]
    train_ours(tiny_recipe(), tmp_path / "ours", "cpu")
    ours = {line["kind"]: set(line) for line in read_metrics(tmp_path / "ours" / "metrics.jsonl")}
    ours["train"] -= {"head"}  # metrics of the head, which their logs lack
    assert {line["kind"]: set(line) for line in theirs} == ours


@pytest.mark.parametrize("oldest", [False, True])
def test_it_can_be_drawn(oldest, converted, tmp_path):
    lines = [train(step, loss="nan" if step == 300 else 3000 / step) for step in range(100, 2001, 100)]
    if oldest:
        lines = [line.replace("LearningRate 0.020000   ", "") for line in lines]
    converted(*lines, *validate(1000), *validate(2000))
    plots = report_plots(load_results(tmp_path / "run"))
    wanted = ["loss", *([] if oldest else ["learning_rate"]), "gradient_scale", "accuracy_lfw"]
    assert [name for name in plots if name in wanted and plots[name].axes] == wanted


def test_best_accuracy_is_not_forgotten_when_the_program_is_started_again(converted):
    run = converted(*validate(1000, accuracy=0.9, highest=0.9), *validate(2000, accuracy=0.8, highest=0.8))
    assert [line["best_accuracy"] for line in run["metrics"]] == [0.9, 0.9]
    assert each(run["validation_metrics"], "AccuracyHighest") == [0.9, 0.8]
    assert run["result"]["steps"] is None


# ------------------------------------------------------------------------------------------- stopped and resumed


def test_what_a_resumed_run_has_written_again_replaces_what_was_there(converted, capsys):
    run = converted(
        *(train(step, loss=1.0) for step in (100, 200, 300, 400)),
        *validate(100), *validate(400),
        *(train(step, loss=2.0) for step in (300, 350)),
        *validate(350, accuracy=0.9, highest=0.9),
    )  # fmt: skip
    assert each(run["training_metrics"], "GlobalStep") == [100, 200, 300, 350]
    assert each(run["training_metrics"], "Loss") == [1.0, 1.0, 2.0, 2.0]
    assert each(run["validation_metrics"], "Step") == [100, 350]
    assert (run["times_back"], run["training_lines_replaced"], run["validations_replaced"]) == (1, 2, 1)
    said = capsys.readouterr().err
    assert "line 11: the step goes back from 400 to 300: 2 lines dropped\n" in said


def test_files_in_the_wrong_order_are_noticed(log, tmp_path, capsys):
    second, first = log(train(300), name="b"), log(train(100), train(200), name="a")
    assert convert_logs([first, second], tmp_path / "right")["training_lines"] == 3
    assert not capsys.readouterr().err
    assert convert_logs([second, first], tmp_path / "wrong")["training_lines"] == 2
    assert "a, line 1: the step goes back from 300 to 100: 1 line dropped, which are all lines before it" in (
        capsys.readouterr().err
    )


def test_validations_in_a_file_of_their_own_survive(log):
    validations = log(*validate(100), *validate(400), name="validation")
    course = log(*(train(step) for step in (100, 200, 400, 300, 400)), name="course")
    for paths in ([validations, course], [course, validations]):
        assert [row["step"] for row in read_logs(paths).validations.rows()] == [100, 400]


def test_a_line_written_twice_counts_once(converted):
    lines = [f"{TIME}: lr  0.1\n", f"{TIME}: fp16  True\n", train(100), *validate(100), train(200), *validate(200)]
    run = converted(*(line for line in lines for _ in range(2)))
    assert each(run["training_metrics"], "GlobalStep") == [100, 200]
    assert each(run["validation_metrics"], "Step") == [100, 200]
    assert run["validations_incomplete"] == run["times_back"] == 0
    assert run["training_lines_replaced"] == 2 and run["validation_lines_repeated"] == 6
    assert run["source"]["configurations"] == [{"lr": "0.1", "fp16": "True"}]


def test_each_start_has_its_configuration(converted):
    run = converted(": lr  0.1\n", ": fp16  True\n", train(100), ": lr  0.2\n", ": fp16  True\n", train(200))
    assert run["source"]["configurations"] == [{"lr": "0.1", "fp16": "True"}, {"lr": "0.2", "fp16": "True"}]


def test_a_validation_that_was_killed_before_its_accuracy_is_left_out(converted, capsys):
    again = validate(2000, accuracy=0.7, highest=0.7, xnorm=5.0)
    run = converted(train(2000), *validate(2000)[:1], train(2000), *again, *validate(4000)[:1])
    assert each(run["validation_metrics"], "AccuracyFlip") == [0.7]
    assert each(run["validation_metrics"], "XNorm") == [5.0]
    assert run["validations_incomplete"] == 2
    assert "incomplete validations (was the program killed?), dropped: 2" in capsys.readouterr().err


def test_a_validation_counts_once_its_accuracy_is_known(converted):
    again = validate(2000, accuracy=0.7, highest=0.7, xnorm=5.0)
    run = converted(train(2000), *validate(2000)[:2], train(2000), *again, *validate(4000)[:2])
    assert each(run["validation_metrics"], "AccuracyFlip") == [0.7, 0.9955]
    assert each(run["validation_metrics"], "AccuracyHighest") == [0.7, None]
    assert [line["best_accuracy"] for line in run["metrics"] if line["kind"] == "validation"] == [0.7, 0.9955]
    assert run["validations_incomplete"] == 0 and run["validations_replaced"] == 1


def mxnet(step, *accuracies):
    """What the trainers of 2018 to 2020 print at a validation: no Accuracy-Highest of a set."""
    lines = [f"lr-batch-epoch: 0.1 {step - 1} 0\n"]
    for name, accuracy in zip(("lfw", "cfp_fp", "agedb_30"), accuracies, strict=False):
        lines += [
            "testing verification..\n",
            "(12000, 512)\n",
            "infer time 12.695148\n",
            f"[{name}][{step}]XNorm: 22.189873\n",
            f"[{name}][{step}]Accuracy-Flip: {accuracy:1.5f}+-0.00358\n",
        ]
    return [
        *lines,
        "saving 6\n",
        'INFO:root:Saved checkpoint to "model-0006.params"\n',
        f"[{step}]Accuracy-Highest: 0.9\n",
    ]


def test_a_log_of_the_mxnet_era_is_read_as_far_as_it_goes(converted, tmp_path, capsys):
    batches = "INFO:root:Epoch[0] Batch [{}-{}]\tSpeed: 224.07 samples/sec\tacc=0.276429\tlossvalue=11.522861\n"
    course = [batches.format(first, first + 20) for first in range(0, 200, 20)]
    run = converted(*course, *mxnet(2000, 0.99, 0.9, 0.95), *course, *mxnet(4000, 0.98, 0.91, 0.96))
    assert run["lines_not_understood"] == run["validations_incomplete"] == 0
    assert run["training_lines"] == 0 and run["training_lines_without_step"] == 20
    assert each(run["validation_metrics"], "Step") == [2000] * 3 + [4000] * 3
    assert each(run["validation_metrics"], "AccuracyFlip") == [0.99, 0.9, 0.95, 0.98, 0.91, 0.96]
    assert each(run["validation_metrics"], "AccuracyHighest") == [None] * 6
    assert run["result"]["best"]["sets"] == {"lfw": 0.99, "cfp_fp": 0.91, "agedb_30": 0.96}
    assert "training lines of MXNet, which give no global step, left out: 20" in capsys.readouterr().err
    assert load_results(tmp_path / "run").metric("lfw", "accuracy").values == {"run": 0.98}


def test_the_one_set_of_a_log_without_any_highest_accuracy(converted):
    run = converted(*(line for step in (2000, 4000) for line in validate(step)[:2]))
    assert each(run["validation_metrics"], "Step") == [2000, 4000] and run["validations_incomplete"] == 0


def test_paddles_log_is_read_with_its_learning_rate(converted):
    line = "Speed 500.89 samples/sec   Loss {}   Epoch: 0   Global Step: {}   Required: 104 hours, "
    rates = "lr_backbone_value: 0.050000, lr_pfc_value: 0.100000\n"
    run = converted(line.format(55.5, 200) + rates, line.format("nan", 400) + rates, *validate(400))
    assert run["lines_not_understood"] == 0
    assert run["training_metrics"] == [
        {"Loss": 55.5, "LearningRate": 0.05, "Epoch": 0, "GlobalStep": 200, "Fp16GradScale": None}
    ]
    assert [line["learning_rate"] for line in run["metrics"] if line["kind"] == "train"] == [0.05, 0.05]


def test_the_files_are_lists_of_objects_that_the_plots_of_the_study_take(converted):
    """What its scripts do with them: a column for each key, the last loss and accuracy in six digits."""
    run = converted(train(100), *validate(100), train(200), train(300, loss="nan"), *validate(300))
    for key in ("Loss", "LearningRate", "Epoch", "GlobalStep", "Fp16GradScale"):
        assert len(each(run["training_metrics"], key)) == 2
    assert f"{run['training_metrics'][-1]['Loss']:.6f}" == "12.345600"
    assert [f"{one['Dataset']} {one['Step']} {one['AccuracyFlip']:.6f}" for one in run["validation_metrics"]] == [
        "lfw 100 0.995500", "lfw 300 0.995500"
    ]  # fmt: skip
    assert converted(*validate(100))["training_metrics"] == []


def test_a_line_cut_in_two_by_a_kill_is_not_read_as_another_step(converted):
    cut = train(12340)[: train(12340).index("Step: 12340") + len("Step: 12")]
    run = converted(train(12330), cut, train(12330, loss=1.5), cut)
    assert each(run["training_metrics"], "GlobalStep") == [12330] and each(run["training_metrics"], "Loss") == [1.5]
    assert run["lines_not_understood"] == 2


# ------------------------------------------------------------------------------------------------- odd files


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\r"),
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: content.decode().encode("utf-16"),
        lambda content: content.decode().encode("utf-16-le"),
        lambda content: content.removesuffix(b"\n"),
        lambda content: content.replace(b"\n", b"\n\n \n"),
        lambda content: b"\0" * 5000 + content,
        lambda content: content.replace(b"\n", b"\n\xef\xbb\xbf"),
        lambda content: content.replace(TIME.encode(), b""),
    ],
    ids=["crlf", "cr", "bom", "utf-16", "utf-16 no bom", "no last lf", "blank lines", "nuls", "bom inside", "no time"],
)
def test_encodings_and_line_ends(change, log, tmp_path):
    content = "".join([train(100), *validate(100), train(200)]).encode()
    logs = read_logs([log(change(content))])
    assert list(logs.training.columns["step"]) == [100, 200]
    assert len(logs.validations.rows()) == 1 and not logs.not_understood


@pytest.mark.parametrize("before", ["\x1b[32m", "\x1b[0m\x1b[1;38;5;12m", "\x1b[K"])
def test_colours_of_a_terminal_are_left_out(before, log):
    plain, coloured = (
        read_logs([log(*lines, name=name)])
        for name, lines in {
            "plain": [train(100), *validate(100)],
            "coloured": [f"{before}{line[:-1]}\x1b[0m\n" for line in [train(100), *validate(100)]],
        }.items()
    )
    assert coloured.training.columns == plain.training.columns
    assert coloured.validations.rows() == plain.validations.rows()
    assert coloured.files[0].not_understood == 0
    assert read_logs([log(train(100).replace("Loss 12.3456", "Loss \x1b[1m12.3456\x1b[0m"))]).training.last_step == 100


PREFIXES = [
    "2022-02-17 INFO ",
    "[2022-02-17 20:06:49,083] INFO: ",
    "INFO:root:",
    "[rank0]:",
    "[default0]:",
    "0: INFO - ",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_stands_before_every_message_is_no_line_that_is_not_understood(prefix, log):
    logs = read_logs([log(*[prefix + line for line in [train(100), *validate(100)]])])
    assert (logs.training.last_step, logs.files[0].not_understood, logs.files[0].understood) == (100, 0, 4)
    [file] = read_logs([log(train(50), *[f"{prefix}{TIME}something else\n", f"Speed 31{train(100)}"])]).files
    assert file.not_understood == 2


def test_lines_not_understood_are_counted_and_shown(converted, log, capsys):
    noise = [b"\xff\xfe\x1b[31m red \xe2\x80\xae\n", "x" * 200_000 + "\n", "Traceback\n", "  File 'a'\n"]
    run = converted(train(100), *noise, train(200))
    assert run["lines_not_understood"] == 4 and run["files"][0]["lines"] == 6
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("note: 4 lines not understood, first: ") and "line 2: '" in said[0]
    assert [line.rpartition(", ")[2][:8] for line in said[1:]] == ["line 3: ", "line 4: "]
    assert all(line.isprintable() and len(line) < 300 for line in said)


def test_a_progress_bar_on_the_same_line(log):
    logs = read_logs([log("\r 10%|#  \r 20%|## \r" + train(100))])
    assert len(logs.training) == 1 and logs.files[0].not_understood == 1


def test_a_broken_byte_spoils_its_line_only(log):
    logs = read_logs([log(train(100), train(200).encode().replace(b"Loss 12", b"Loss \xff2"), train(300))])
    assert list(logs.training.columns["step"]) == [100, 300] and logs.files[0].not_understood == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "none of its 2 lines"),
        (b"hello\nworld\n", "none of its 2 lines"),
        (b"\x1f\x8b" + bytes(range(256)) * 50, "none of its"),
        (f"{TIME}rank_id: 0\n: lr  0.1\n".encode(), "no training line"),
        (validate(100)[0].encode(), "no training line with a global step and no validation"),
    ],
)
def test_files_that_are_no_logs(content, message, log, tmp_path):
    with pytest.raises(DataError, match=message):
        convert_logs([log(content)], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_paths_that_are_no_files(log, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: cannot be read: No such file"):
        read_logs([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="is a folder; give the log in it"):
        read_logs([tmp_path])
    path = log(train(1))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(DataError, match="link: given twice"):
        read_logs([path, tmp_path / "link"])


def test_long_lines_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(text_logs, "LONGEST_LINE", 10)
    raw = io.BufferedReader(io.BytesIO(b"123456789\n" + b"x" * 35 + b"\nabc\n" + b"y" * 20))
    assert list(text_logs._bounded_lines(raw, "utf-8")) == ["123456789\n", "x" * 10, "abc\n", "y" * 10]


def test_numbers_of_sets_and_settings_are_bounded(log, monkeypatch, capsys):
    monkeypatch.setattr(text_logs, "MOST_SETS", 2)
    monkeypatch.setattr(text_logs, "MOST_SETTINGS", 3)
    lines = [line for name in "abc" for line in validate(100, name)] + [f": name{i}  1\n" for i in range(5)]
    logs = read_logs([log(*lines)])
    assert list(logs.validations.of_set) == ["a", "b"] and logs.files[0].not_understood == 3
    assert len(logs.configurations[0]) == 3 and logs.settings_left_out == 2


LINES = [train(100), train(200, loss="nan"), train(50, scale=""), *validate(100), *validate(200, "cfp_fp"), ": a  1\n"]


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.binary(max_size=200))
def test_nothing_crashes_it(tmp_path_factory, source: random.Random, junk):
    """Lines in any order, with bytes changed, cut out and put in."""
    folder = tmp_path_factory.mktemp("logs")
    content = bytearray("".join(source.choices(LINES, k=20)).encode())
    for _ in range(source.randrange(6)):
        start = source.randrange(len(content))
        content[start : start + source.randrange(30)] = junk[: source.randrange(len(junk) + 1)]
    (folder / "a.log").write_bytes(content)
    try:
        summary = convert_logs([folder / "a.log"], folder / "run")
    except DataError as error:
        assert "\n" not in str(error)
        return
    objects = json.loads((folder / "run" / "training_metrics.json").read_bytes())
    assert len(objects) == summary["training_lines"] - summary["losses_not_finite"]
    assert each(objects, "GlobalStep") == sorted(set(each(objects, "GlobalStep")))
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


# --------------------------------------------------------------------------------------------- folder, command


def test_what_an_earlier_call_wrote_is_replaced(log, tmp_path):
    """A training that is still running is read again."""
    output = tmp_path / "run"
    convert_logs([log(train(100))], output)
    assert convert_logs([log(train(100), train(200))], output)["training_lines"] == 2
    assert len(read_metrics(output / "metrics.jsonl")) == 2


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "checkpoints/last.pt", "source.json"])
@pytest.mark.parametrize("converted_before", [False, True])
def test_a_run_of_ours_is_refused(name, converted_before, log, tmp_path):
    output, path = tmp_path / "run", log(train(100))
    if converted_before:
        if name == "metrics.jsonl":
            return
        convert_logs([path], output)
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / name).write_text("{}")
    before = sorted(output.rglob("*"))
    with pytest.raises(ConfigError, match="choose another --output"):
        convert_logs([path], output)
    assert sorted(output.rglob("*")) == before and (output / name).read_text() == "{}"


def test_an_output_that_cannot_be_written(log, tmp_path):
    path = log(train(100))
    with pytest.raises(ConfigError, match="cannot be written"):
        convert_logs([path], path / "run")


def test_command(log, tmp_path, capsys):
    path = log(train(100), *validate(100), "?\n")
    assert main(["logs", str(path), "--output", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "99.55 % ± 0.35" in captured.out and "99.57 %" in captured.out
    assert "1 training lines: steps 100 to 100, 4 epochs started" in captured.out
    assert "note: 1 line not understood, first: " in captured.err
    assert main(["logs", str(path), "--output", str(tmp_path / "again"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["sets"][0]["best_accuracy"] == 0.99567 and summary["lines_not_understood"] == 1


def test_command_refuses_in_one_line(tmp_path, capsys):
    assert main(["logs", str(tmp_path / "a\nb"), "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("facebones: ") and "cannot be read" in line


def test_validations_with_numbers_that_are_not_finite_are_counted_and_said(converted, capsys):
    run = converted(
        train(1000),
        *validate(1000),
        *validate(2000, xnorm=float("inf")),
        *validate(3000, accuracy=float("nan")),
        *validate(4000)[:2],  # its highest accuracy is missing, which is no such number
    )
    assert run["validations_not_finite"] == 2 == run["source"]["validations_not_finite"]
    assert "validations with a number that is not finite, null in metrics.jsonl" in capsys.readouterr().err
    assert each(run["validation_metrics"], "Step") == [1000, 2000, 4000]
