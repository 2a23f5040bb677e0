from loss_memory import CHUNKED, FULL, peak_bytes


def test_a_large_vocabulary_takes_a_quarter_of_the_full_logits_at_most():
    """Counted on the meta device: 8,192 positions, all supervised, both passes."""
    logits = 8192 * 128_256 * 4
    assert peak_bytes(FULL, positions=8192, vocabulary=128_256) >= logits
    assert 0 < peak_bytes(CHUNKED, positions=8192, vocabulary=128_256) <= 0.25 * logits
