from __future__ import annotations

import io
import unittest

import numpy as np

from moe_weights.errors import OutputError
from moe_weights.measure.sampling import sample_indices, write_sample_cache
from tests.support.matrices import DTYPES, measure, normal_matrix
from tests.support.runs import temporary_folder


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


class Drawing(unittest.TestCase):
    def test_is_numpys_choice_without_repeats_unsorted(self) -> None:
        for n, k, seed in ((1000, 10, 1337), (1000, 999, 0), (70_000, 8192, 1337)):
            expected = np.random.default_rng(seed).choice(n, size=k, replace=False)
            found = sample_indices(n, k, seed)
            self.assertEqual(found.tolist(), expected.tolist())
            self.assertEqual(found.dtype, np.int64)
            self.assertEqual(len(set(found.tolist())), k)

    def test_takes_all_in_order_when_there_are_no_more(self) -> None:
        for k in (5, 6, 8192):
            self.assertEqual(sample_indices(5, k, 1337).tolist(), [0, 1, 2, 3, 4])


class SampledPercentiles(unittest.TestCase):
    def test_are_those_of_the_drawn_elements(self) -> None:
        drawn = np.random.default_rng(7).choice(64 * 32, size=100, replace=False)
        for dtype in DTYPES:
            matrix = normal_matrix(64, 32, dtype)
            found = measure(matrix, sample_per_matrix=100, sample_seed=7)
            values = np.abs(matrix.astype(np.float64).reshape(-1)[drawn])
            for name, percentile in (("p50_abs", 50), ("p99_abs", 99), ("p999_abs", 99.9)):
                self.assertEqual(found[name], np.percentile(values, percentile))

    def test_leave_moments_and_maximum_exact(self) -> None:
        matrix = normal_matrix(64, 32)
        sampled = measure(matrix, sample_per_matrix=3)
        exact = measure(matrix)
        for name in ("mean", "std", "mean_abs", "rms", "max_abs", "g32_max_outlier", "n_zero"):
            self.assertEqual(sampled[name], exact[name])

    def test_of_all_elements_are_the_exact_ones(self) -> None:
        matrix = normal_matrix(8, 32)
        self.assertEqual(measure(matrix, sample_per_matrix=8192), measure(matrix))


class SampleFile(unittest.TestCase):
    def setUp(self) -> None:
        self.folder = temporary_folder(self) / "sampled_indices"
        self.path = self.folder / "idx_N1000_k10_seed1337.npy"

    def test_is_named_by_size_count_and_seed_and_holds_the_draw(self) -> None:
        indices = sample_indices(1000, 10, 1337)
        write_sample_cache(self.folder, 1000, 10, 1337)
        self.assertEqual([path.name for path in self.folder.iterdir()], [self.path.name])
        self.assertEqual(np.load(self.path).tolist(), indices.tolist())
        self.assertEqual(np.load(self.path).dtype, np.int64)

    def test_that_is_damaged_is_made_anew_and_never_believed(self) -> None:
        true = sample_indices(1000, 10, 1337)
        damaged = {
            "empty": b"",
            "not an array": b"indices",
            "cut short": npy(true)[:-1],
            "too long": npy(np.append(true, 5)),
            "out of range": npy(np.full(10, 1000)),
            "negative": npy(-true - 1),
            "repeats": npy(np.zeros(10, dtype=np.int64)),
            "floats": npy(true.astype(np.float64)),
            "another draw": npy(sample_indices(1000, 10, 1)),
            "a broken archive": b"PK\x03\x04" + npy(true)[4:],
            "a huge claim": npy(true).replace(b"(10,)", b"(10000000000000,)"),
        }
        for number, (kind, content) in enumerate(damaged.items()):
            folder = self.folder / str(number)  # what was drawn for a folder is remembered
            folder.mkdir(parents=True)
            path = folder / self.path.name
            path.write_bytes(content)
            with self.subTest(kind=kind):
                write_sample_cache(folder, 1000, 10, 1337)
                self.assertEqual(path.read_bytes(), npy(true))

    def test_that_is_right_stays_untouched(self) -> None:
        self.folder.mkdir()
        self.path.write_bytes(npy(sample_indices(1000, 10, 1337)))
        before = self.path.stat()
        write_sample_cache(self.folder, 1000, 10, 1337)
        self.assertEqual(self.path.stat().st_ino, before.st_ino)

    def test_gives_indices_that_nobody_can_change(self) -> None:
        with self.assertRaises(ValueError):
            sample_indices(1000, 10, 1337)[0] = 1

    def test_that_cannot_be_written_is_an_output_error(self) -> None:
        blocked = temporary_folder(self) / "file"
        blocked.write_bytes(b"")
        with self.assertRaises(OutputError) as caught:
            write_sample_cache(blocked, 1000, 10, 1337)
        self.assertEqual(
            str(caught.exception),
            f"cannot write {blocked / self.path.name}: File exists; check the run directory; "
            "the file is as it was before",
        )
