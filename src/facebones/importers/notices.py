"""Lines of training logs that are known and hold nothing to keep: notices of arcface_torch, arcface_paddle and MXNet.

The patterns are possessive and never backtrack, as in `text_logs`.
"""

import re

_FLAGS = re.ASCII | re.IGNORECASE
_NUMBER = r"[-+]?+(?:\d++(?:\.\d*+)?+(?:e[-+]?+\d++)?+|nan|inf)"

_FORMS = (
    r"rank_id: \d++",
    r"Reducer buckets have been rebuilt in this iteration\.?+",
    r"(?:resume fail, )?+(?:backbone|partial fc|softmax weight(?: mom)?+)(?: \w++){1,3}+!?+",
    r"Pytorch Model Saved in .*+",
    r"[-=*#]{3,}+",
    # a validation
    r"loading bin \d++",
    r"torch\.Size\(\[\d++(?:, \d++)*+\]\)",
    r"testing verification\.*+",
    r"\(\d++, \d++\)",
    rf"infer time {_NUMBER}",
    rf"\[\d{{1,15}}+\]\s*+Accuracy-Highest: {_NUMBER}(?:\s++{_NUMBER})*+",  # MXNet: of all sets together
    rf"\[[^\[\]\x00-\x1f]{{1,200}}+\]\s*+\[\d{{1,15}}+\]\s*+"
    rf"(?!XNorm|Accuracy-Flip|Accuracy-Highest)[a-z][\w-]*+\s*+[:=]\s*+{_NUMBER}(?:\s*+\+-\s*+{_NUMBER})?+",
    # MXNet
    rf"(?:lr-)?+batch-epoch: {_NUMBER} \d++ \d++",
    rf"lr change to {_NUMBER}",
    r"lr_steps \[[\d, ]*+\]",
    r"saving \d++",
    r'Saved checkpoint to ".*+',
    r"loading recordio .*+",
    r"Epoch\[\d++\] (?:(?:Train|Validation)-[\w-]++=.*+|Time cost=.*+|Resetting Data Iterator)",
    r"(?:gpu num:|num_layers|num_classes|id2range|rand_mirror|ver|provide_data|header0 label|image_size|eval) .*+",
    r"Called with argument: .*+",
    r"call reset\(\)",
    r"\[\d\d:\d\d:\d\d\] [^\s:]++:\d++: .*+",  # MXNet's own messages name a line of its source
)
_NOTICE = re.compile(rf"(?:INFO:\w*+:)?+(?:{'|'.join(_FORMS)})\s*+\Z", _FLAGS)
_BATCHES = re.compile(r"(?:INFO:\w*+:)?+Epoch\[\d++\] Batch \[\d++(?:-\d++)?+\]\s*+Speed: .*+\Z", _FLAGS)


def is_notice(text: str) -> bool:
    """Whether a message is known and holds nothing to keep.

    >>> is_notice("lr-batch-epoch: 0.1 1999 0"), is_notice("Traceback (most recent call last):")
    (True, False)
    """
    return _NOTICE.match(text) is not None


def counts_batches(text: str) -> bool:
    """Whether a message is a training line of MXNet, which gives the batch within the epoch instead of the step.

    >>> counts_batches("INFO:root:Epoch[0] Batch [20-40] Speed: 512.31 samples/sec acc=0.1 lossvalue=41.9")
    True
    """
    return _BATCHES.match(text) is not None
