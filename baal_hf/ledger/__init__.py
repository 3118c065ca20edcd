"""The record of labels: events that are appended and never changed; everything else is derived from them."""

from baal_hf.ledger.events import LabelEvent
from baal_hf.ledger.ledger import LabelLedger
from baal_hf.ledger.state import LabelState
from baal_hf.ledger.votes import Consensus, consensus_rule

__all__ = ["Consensus", "LabelEvent", "LabelLedger", "LabelState", "consensus_rule"]
