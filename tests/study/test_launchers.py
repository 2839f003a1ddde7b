"""Launchers: what they ask of a cluster, what they refuse, and the workers that they start."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from groups import wait_for

from facebones.cli.main import main
from facebones.study.launch import watch
from facebones.study.launchers.options import read_launcher
from facebones.study.launchers.slurm import _parameters
from facebones.study.launchers.worker_job import WorkerJob
from facebones.study.plan import make_plan
from facebones.study.planned_run import DONE
from facebones.study.study import load_study
from facebones.system import lease

STUDY = """
recipe: demo
overrides:
  backbone.embedding_size: 16
  data.workers: 0
  training.batch_size: 14
  training.epochs: 2
  training.checkpoint_every: 2
  validation.sets: tiny
  log.every: 1
backbones: [shufflefacenet_0_5]
seeds: [0, 1]
data: {data}
profile: false
"""


@pytest.fixture
def study(tmp_path, small_data):
    path = tmp_path / "mine.yaml"
    path.write_text(STUDY.format(data=small_data))
    return str(path)


def refused(words, capsys):
    """The one line of a refused command line."""
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1, said
    return said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--launcher", "slrum"], "--launcher: unknown launcher 'slrum'; did you mean 'slurm'?"),
        (
            ["--launcher", "slurm", "--launcher.gpu", "1"],
            "unknown option '--launcher.gpu'; did you mean '--launcher.gpus'?",
        ),
        (
            ["--launcher.partition", "gpu"],
            "--launcher.partition: is an option of --launcher slurm, not of local",
        ),
        (
            ["--launcher", "ray", "--launcher.time", "60"],
            "--launcher.time: is an option of --launcher slurm, not of ray",
        ),
        (["--launcher", "slurm", "--launcher.gpus", "many"], "--launcher.gpus: "),
        (["--launcher", "slurm", "--launcher.cpus", "0"], "--launcher.cpus: "),
        (
            ["--launcher", "slurm", "--launcher.time", "soon"],
            "--launcher.time soon: is no time; give minutes, HH:MM:SS",
        ),
        (["--launcher", "slurm", "--launcher.time", "0"], "--launcher.time 0: is no time"),
        (["--launcher.expiry", "0"], "--launcher.expiry: "),
        (["--launcher", "slurm", "--launcher.gpus"], "--launcher.gpus: a value is missing"),
        (["--only", "shufflefacenet_0_5_seed7"], "--only: unknown training 'shufflefacenet_0_5_seed7'; did you mean"),
        (["--worker", "--training.epoch", "3"], "epoch"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(study, tmp_path, capsys, words, message):
    assert message in refused(["compare", study, "--output", str(tmp_path / "out"), *words], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("launcher", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed_is_one_line(study, tmp_path, capsys, monkeypatch, launcher, package):
    monkeypatch.setitem(sys.modules, package, None)
    said = refused(["compare", study, "--output", str(tmp_path / "out"), "--launcher", launcher], capsys)
    assert said == f"facebones: {launcher} is not installed; pip install 'facebones[{launcher}]'\n"
    assert not (tmp_path / "out").exists()


def test_a_machine_without_slurm_is_one_line(study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    said = refused(["compare", study, "--output", str(tmp_path / "out"), "--launcher", "slurm"], capsys)
    assert "there is no sbatch here" in said and not (tmp_path / "out").exists()


def test_submitting_leaves_the_log_handlers_of_the_process_open():
    pytest.importorskip("submitit")
    code = (
        "import logging, os\n"
        "class Handler(logging.Handler):\n"
        "    def close(self):\n"
        "        print('closed', flush=True)\n"
        "handler = Handler()\n"
        "from facebones.study.launchers.slurm import _import_submitit\n"
        "print(_import_submitit().__name__, os.environ.get('SUBMITIT_LOG_LEVEL'), flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "submitit None\n"


@pytest.mark.parametrize("words", [["--worker"], ["--launcher", "slurm", "--launcher.cluster", "local"]])
def test_a_file_system_that_workers_cannot_share_is_refused(study, tmp_path, capsys, monkeypatch, words):
    monkeypatch.setattr(lease, "_link", lambda *_: None)
    said = refused(["compare", study, "--output", str(tmp_path / "out"), *words], capsys)
    assert "has no hard links, by which workers share a study; put --output on another" in said
    assert not list(tmp_path.glob("out/**/*"))


def test_slurm_gets_what_the_options_say():
    texts = {"partition": "gpu", "gpus": "1", "cpus": "8", "memory": "32", "time": "1-00:00:00", "account": "faces"}
    options = read_launcher("slurm", {f"launcher.{name}": text for name, text in texts.items()})
    parameters = _parameters(options)
    submitit = pytest.importorskip("submitit")
    own = {key.removeprefix("slurm_"): value for key, value in parameters.items() if key.startswith("slurm_")}
    text = submitit.slurm.slurm._make_sbatch_string(
        "train", "logs", time=parameters["timeout_min"], gpus_per_node=parameters["gpus_per_node"], map_count=3, **own
    )
    for line in ("partition=gpu", "account=faces", "time=1440", "gpus-per-node=1", "signal=USR2@120", "requeue"):
        assert f"#SBATCH --{line}\n" in text
    assert "#SBATCH --array=0-2%3\n" in text and parameters["mem_gb"] == 32 and parameters["cpus_per_task"] == 8


@pytest.mark.parametrize("more", [["--worker"], ["--only", "shufflefacenet_0_5_seed0"]])
def test_print_is_not_told_which_worker_takes_what(study, tmp_path, capsys, more):
    said = refused(["compare", study, "--output", str(tmp_path / "out"), "--launcher", "print", *more], capsys)
    assert more[0] in said and "leave one of them out" in said


def test_print_gives_a_shell_line_for_each_training(study, tmp_path, capsys):
    output = tmp_path / "my out"
    words = [
        "compare",
        study,
        "--output",
        str(output),
        "--device",
        "cpu",
        "--launcher",
        "print",
        "--launcher.expiry=30",
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not output.exists() and len(lines) == 2
    for seed, line in enumerate(lines):
        folder, _, rest = line.partition(" && ")
        assert shlex.split(folder) == ["cd", str(Path.cwd())]
        own = ["--worker", "--launcher.expiry", "30", "--only", f"shufflefacenet_0_5_seed{seed}"]
        assert shlex.split(rest) == ["facebones", "compare", study, "--output", str(output), "--device", "cpu", *own]


def states(study, output):
    return [run.state for run in make_plan(load_study(study), output).runs]


def test_watch_says_that_no_worker_is_there(study, tmp_path, capsys):
    class EnoughError(Exception):
        pass

    def wait(_):
        raise EnoughError

    with pytest.raises(EnoughError):
        watch(load_study(study), tmp_path / "out", wait)
    said = capsys.readouterr().err
    assert said == f"note: no worker trains in {tmp_path / 'out'} now; the same command without --watch starts one\n"
    assert not (tmp_path / "out").exists()


def run_facebones(*words):
    own = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "facebones", *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | own,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_printed_lines_train_and_the_last_one_reports(study, tmp_path):
    output = tmp_path / "out"
    common = ["compare", study, "--output", output, "--device", "cpu"]
    first, second = run_facebones(*common, "--launcher", "print").splitlines()
    said = run_facebones(*shlex.split(first.partition(" && facebones ")[2]))
    assert said == "1 training left for other workers; the last worker measures and reports\n"
    assert states(study, output)[0] == DONE and not (output / "report").exists()
    said = run_facebones(*shlex.split(second.partition(" && facebones ")[2]))
    assert said.splitlines()[-1] == f"report: {output / 'report' / 'report.html'}"
    assert states(study, output) == [DONE, DONE]


@pytest.mark.slow
def test_jobs_of_submitit_train_a_study(study, tmp_path):
    """Its local executor: the same jobs without Slurm."""
    pytest.importorskip("submitit")
    output = tmp_path / "out"
    common = ["compare", study, "--output", output, "--device", "cpu"]
    launcher = [
        "--launcher",
        "slurm",
        "--launcher.cluster",
        "local",
        "--launcher.workers",
        "2",
        "--launcher.time",
        "10",
    ]
    said = run_facebones(*common, *launcher)
    assert said.startswith("submitted job ") and "with 2 worker(s) for 2 training(s)" in said
    wait_for((output / "report" / "report.html").is_file, 240)
    assert states(study, output) == [DONE, DONE]
    assert run_facebones(*common, "--watch") == ""


@pytest.mark.slow
def test_a_job_that_is_signalled_saves_and_is_queued_again(study, tmp_path):
    """As Slurm does ahead of a time limit: SIGUSR2 to all processes of the job."""
    submitit = pytest.importorskip("submitit")
    output = tmp_path / "out"
    words = ["compare", study, "--output", str(output), "--device", "cpu", "--training.epochs", "200", "--worker"]
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=10)
    job = executor.submit(WorkerJob(words, "launch"))
    metrics = output / "runs" / "shufflefacenet_0_5" / "seed0" / "metrics.jsonl"
    try:
        wait_for(lambda: metrics.is_file() and len(metrics.read_bytes().splitlines()) > 3, 120)
        controller = job._process.pid
        own = descendants(controller)
        assert len(own) >= 3  # the job, its worker, and the worker's training
        for pid in own:
            os.kill(pid, 12)
        log = metrics.parent.with_name("seed0.log")
        wait_for(lambda: "resuming" in log.read_text(), 240)
        assert "step 0 of" not in log.read_text().partition("resuming")[2].splitlines()[0]
        assert job._process.poll() is None
    finally:
        for pid in [job._process.pid, *descendants(job._process.pid)]:
            os.kill(pid, 9)
        job._process.wait(10)


def descendants(pid):
    own = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [one for child in own for one in descendants(child)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tasks_of_ray_train_a_study(study, tmp_path, capsys):
    ray = pytest.importorskip("ray")
    output = tmp_path / "out"
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": own})
    try:
        words = ["compare", study, "--output", str(output), "--device", "cpu", "--launcher", "ray"]
        assert main([*words, "--launcher.workers", "2"]) == 0
    finally:
        ray.shutdown()
    assert states(study, output) == [DONE, DONE]
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {output / 'report' / 'report.html'}"
