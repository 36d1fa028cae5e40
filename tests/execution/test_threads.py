"""The automatic number of threads."""

from lorry.adapters.image import Site
from lorry.server.execution.threads import choose_num_threads


def sites(width: int) -> list[Site]:
    return [Site("tiny", 0, 8, 8), Site("wide", 0, width, 4 * width)]


def test_a_tiny_model_is_not_shared_between_cores() -> None:
    """Steps five times slower, spent waiting for the second thread."""
    assert choose_num_threads(0, num_cores=8, max_running=64, sites=sites(128)) == 1


def test_a_model_of_useful_size_takes_all_cores() -> None:
    """Cores left idle under a real model."""
    assert choose_num_threads(0, num_cores=8, max_running=64, sites=sites(1024)) == 8


def test_the_operators_word_counts() -> None:
    """A flag that is overruled."""
    assert choose_num_threads(3, num_cores=8, max_running=64, sites=sites(128)) == 3
