from __future__ import annotations

import gc
import unittest

from moe_weights.commands.paused_collector import collector_paused


class PausedCollector(unittest.TestCase):
    def tearDown(self) -> None:
        gc.enable()

    def test_runs_again_afterwards_whatever_happens(self) -> None:
        with self.assertRaises(ValueError), collector_paused():
            self.assertFalse(gc.isenabled())
            raise ValueError
        self.assertTrue(gc.isenabled())

    def test_that_was_off_stays_off(self) -> None:
        gc.disable()
        with collector_paused():
            self.assertFalse(gc.isenabled())
        self.assertFalse(gc.isenabled())
