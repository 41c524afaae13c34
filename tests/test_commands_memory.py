from __future__ import annotations

import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

from moe_weights.commands import memory
from moe_weights.commands.memory import (
    MemoryBudget,
    parse_size,
    peak_resident_nbytes,
    resident_nbytes,
)


class Sizes(unittest.TestCase):
    def test_are_powers_of_1024_in_any_spelling(self) -> None:
        for text, nbytes in {
            "1073741824": 2**30, "1": 1, "7b": 7, "1k": 1024, "1KB": 1024, "1kib": 1024,
            "512M": 2**29, "512 MB": 2**29, "512MiB": 2**29, "2g": 2**31, "2GiB": 2**31,
            " 1.5 GiB ": 3 * 2**29, "0.5k": 512, "1T": 2**40, "1 TiB": 2**40,
        }.items():  # fmt: skip
            with self.subTest(text=text):
                self.assertEqual(parse_size(text), nbytes)

    def test_that_are_none_are_refused(self) -> None:
        for text in ("", " ", "0", "0GiB", "0.0001k", "-1", "1e9", "1,5G", "GiB", "1 G B", "ten",
                     "1PiB", "1.G", ".5G", "nan"):  # fmt: skip
            with self.subTest(text=text), self.assertRaises(ValueError) as caught:
                parse_size(text)
            self.assertEqual(
                str(caught.exception),
                f"{text!r} is no size; write for example 2GiB, 512MiB or 1073741824",
            )

    def test_beyond_all_numbers_are_refused(self) -> None:
        with self.assertRaises(ValueError):
            parse_size("9" * 400)


class Budget(unittest.TestCase):
    def test_is_never_exceeded_by_many_threads(self) -> None:
        budget, lock = MemoryBudget(10), threading.Lock()
        held, most = 0, 0

        def work(nbytes: int) -> None:
            nonlocal held, most
            with budget.take(nbytes):
                with lock:
                    held += nbytes
                    most = max(most, held)
                time.sleep(0.002)
                with lock:
                    held -= nbytes

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, [1, 9, 3, 3, 3, 10, 5, 5, 7, 2] * 4))
        self.assertLessEqual(most, 10)
        self.assertGreater(most, 5)

    def test_lets_what_is_larger_than_all_run_alone(self) -> None:
        budget, events = MemoryBudget(10), []

        def large() -> None:
            with budget.take(1000):
                events.append("large")

        with budget.take(1):
            thread = threading.Thread(target=large)
            thread.start()
            time.sleep(0.05)
            events.append("small")
        thread.join(5)
        self.assertEqual(events, ["small", "large"])

    def test_is_given_back_after_a_failure(self) -> None:
        budget = MemoryBudget(10)
        for _time in range(3):
            with self.assertRaises(KeyError), budget.take(10):
                raise KeyError
        with budget.take(10):
            pass


class ResidentMemory(unittest.TestCase):
    def test_grows_with_what_is_touched_and_its_peak_stays(self) -> None:
        before = resident_nbytes()
        touched = bytearray(b"\1") * (64 * 2**20)
        self.assertGreaterEqual(resident_nbytes(), before + 48 * 2**20)
        del touched
        self.assertGreaterEqual(peak_resident_nbytes(), before + 48 * 2**20)

    def test_is_known_without_proc_as_well(self) -> None:
        with mock.patch.object(Path, "read_text", side_effect=FileNotFoundError):
            peak = peak_resident_nbytes()
            self.assertEqual(resident_nbytes(), peak)
        self.assertGreater(peak, 10 * 2**20)
        self.assertLess(peak, 2**40)

    def test_is_told_in_bytes_by_macos_and_in_kibibytes_elsewhere(self) -> None:
        usage = mock.Mock(ru_maxrss=1000)
        with (
            mock.patch.object(memory.resource, "getrusage", return_value=usage),
            mock.patch.object(memory, "_status_nbytes", return_value=0),
        ):
            for platform, nbytes in (("darwin", 1000), ("linux", 1000 * 1024)):
                with mock.patch.object(memory.sys, "platform", platform):
                    self.assertEqual(peak_resident_nbytes(), nbytes)


if __name__ == "__main__":
    unittest.main()
