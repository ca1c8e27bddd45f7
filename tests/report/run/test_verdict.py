from __future__ import annotations

from pathlib import Path

from reldistill.report.record import NetworkRecord, RunRecord, read_record
from reldistill.report.run.verdict import verdict


def line(records: list[RunRecord], start: str) -> str:
    return next(line for line in verdict(records).splitlines() if line.startswith(start))


def test_a_gain_within_noise_says_what_the_images_resolve(make_record) -> None:
    records = [make_record("none", hits=330), make_record("serkd", hits=337)]
    assert line(records, "serkd") == (
        "serkd: +1.9 points over the student alone; 360 validation images resolve about ±3.9, so this is within noise "
        "(1.54× the time per step)."
    )


def test_a_gain_beyond_noise_gives_its_interval(records: list[RunRecord]) -> None:
    assert line(records, "serkd:") == (
        "serkd: +5.0 points over the student alone (95 % interval +1.6 to +8.6): better by more than the sampling "
        "noise of the validation images (1.54× the time per step)."
    )


def test_a_gain_at_the_edge_says_so_and_does_not_contradict_itself(tmp_path: Path, make_record, write_hits) -> None:
    write_hits(tmp_path / "none", make_record("none"), wrong=list(range(30)))
    write_hits(tmp_path / "kd", make_record("kd"), wrong=[*range(14), *range(100, 106)])  # 16 gained, 6 lost
    write_hits(tmp_path / "rkd", make_record("rkd"), wrong=[*range(15), *range(100, 105)])  # 15 gained, 5 lost
    records = [read_record(tmp_path / name) for name in ("none", "kd", "rkd")]
    assert line(records, "kd:") == (
        "kd: +2.8 points over the student alone (95 % interval +0.2 to +5.6, exact paired test p = 0.052): at the edge "
        "of the sampling noise, not beyond it (1.23× the time per step)."
    )
    assert line(records, "rkd:").startswith(
        "rkd: +2.8 points over the student alone (95 % interval +0.4 to +5.6): better"
    )


def test_a_loss_beyond_noise_is_called_worse(make_record) -> None:
    found = line([make_record("none", hits=330), make_record("kd", hits=280)], "kd:")
    assert "−13.9 points" in found
    assert "worse by more than the sampling noise" in found


def test_the_setting_the_references_and_the_seed_are_stated(records: list[RunRecord]) -> None:
    text = verdict(records)
    assert text.splitlines()[0] == (
        "resnet8 (78 k parameters) learns from resnet20 (272 k) on digits: 10 classes, 1,437 training and 360 "
        "validation images."
    )
    assert "teacher resnet20: 98.6 % of the validation images right (95 % interval 96.8–99.4)." in text
    assert "student alone: 91.7 % of the validation images right (95 % interval 88.4–94.1)." in text
    assert "One seed each:" in text
    assert "in up to 20 % of such comparisons" in text, "four methods are compared"


def test_gains_come_largest_first_and_the_best_two_are_compared(records: list[RunRecord]) -> None:
    lines = verdict(records).splitlines()
    order = [text.split(":")[0] for text in lines if "over the student alone" in text]
    assert order == ["serkd", "kd", "sekd", "rkd"]
    assert "serkd beats kd by 3.3 points, more than the sampling noise." in lines


def test_best_two_that_cannot_be_told_apart(make_record) -> None:
    records = [make_record("none", hits=330), make_record("kd", hits=345), make_record("rkd", hits=347)]
    assert (
        "rkd and kd are 0.6 points apart, resolved to about ±3.0: the images cannot tell which is better."
        in verdict(records)
    )


def test_pairing_is_used_and_then_nothing_is_said_of_unpaired_intervals(
    tmp_path: Path, make_record, write_hits
) -> None:
    write_hits(tmp_path / "none", make_record("none"), wrong=list(range(30)))
    write_hits(tmp_path / "kd", make_record("kd"), wrong=list(range(20)))
    records = [read_record(tmp_path / name) for name in ("none", "kd")]
    assert "kd: +2.8 points over the student alone (95 % interval +1.5 to +5.0): better" in verdict(records)
    assert "unpaired" not in verdict(records)
    records[1].result.by_image = None
    assert "resolve about ±3.8, so this is within noise" in verdict(records)
    assert "unpaired" in verdict(records)


def test_several_seeds_are_averaged(make_record) -> None:
    records = [make_record("none", seed=seed, hits=330 + 2 * seed) for seed in range(3)]
    records += [make_record("kd", seed=seed, hits=hits) for seed, hits in enumerate((335, 341, 338))]
    assert line(records, "kd: +") == (
        "kd: +1.7 points over the student alone on average of 3 seeds, +1.1 to +2.5 by seed."
    )
    assert "One seed each" not in verdict(records)


def test_unfinished_runs_are_not_judged(make_record, records: list[RunRecord]) -> None:
    running, stopped = make_record("kd+rkd", status="running"), make_record("crd", status="stopped")
    text = verdict([*records, running, stopped])
    assert "kd+rkd is still running (8 epochs so far): not judged yet." in text
    assert "crd was cut short after 8 epochs: not judged." in text


def test_a_single_run_says_what_is_missing(make_record) -> None:
    text = verdict([make_record("serkd", hits=345)])
    assert "serkd: 95.8 %; no finished run of the student alone" in text
    assert "(--method none)" in text
    assert "seed" not in text


def test_a_teacher_that_is_no_better_is_pointed_out(make_record) -> None:
    weak = NetworkRecord("resnet20", 272_474, 32, "file", None, 80.0)
    text = verdict([make_record("none", hits=330), make_record("kd", hits=331, teacher=weak)])
    assert "The teacher is no better than the student alone" in text


def test_no_records() -> None:
    assert verdict([]) == "No runs."


def test_more_images_are_told_in_hundredths(make_record) -> None:
    records = [make_record("none", hits=330), make_record("kd", hits=336)]
    for record, accuracy in zip(records, (81.41, 84.13), strict=True):
        record.data.val_images = 10_000
        record.result.score_last = accuracy
    assert line(records, "kd:").startswith("kd: +2.72 points over the student alone (95 % interval +1.67 to +3.77)")


def test_a_teacher_as_good_as_the_student_alone_has_little_to_pass_on(make_record) -> None:
    for score, said in ((75.0, True), (75.1, False)):
        teacher = NetworkRecord("resnet20", 272_474, 32, "file", None, score)
        text = verdict([make_record("none", hits=270), make_record("kd", hits=271, teacher=teacher)])
        assert ("The teacher is no better than the student alone" in text) is said


def test_chance_puts_no_more_than_all_outside_their_intervals(make_record) -> None:
    for count, share in ((2, 10), (19, 95), (21, 100)):
        records = [make_record("none", hits=330), *(make_record(f"m{i}", hits=331) for i in range(count))]
        assert f"among {count} methods that gain nothing" in verdict(records)
        assert f"in up to {share} % of such comparisons" in verdict(records)
