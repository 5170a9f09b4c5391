"""Networks."""

from . import basicvsr_arch as basicvsr_arch
from . import edvr_arch as edvr_arch
from . import rrdbnet_arch as rrdbnet_arch
from . import srvgg_arch as srvgg_arch
