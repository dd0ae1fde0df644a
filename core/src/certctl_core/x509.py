"""Read, compare and check certificates, CSRs and names. Pure functions over bytes and text; no I/O.

The one place to import them from; each lives in the module of its subject.
"""

from __future__ import annotations

from certctl_core.csr import CheckedCsr as CheckedCsr
from certctl_core.csr import CsrError as CsrError
from certctl_core.csr import match_names as match_names
from certctl_core.csr import read_csr as read_csr
from certctl_core.issued import Issued as Issued
from certctl_core.issued import IssuedError as IssuedError
from certctl_core.issued import check_issued as check_issued
from certctl_core.issued import check_path as check_path
from certctl_core.keys import KeyKind as KeyKind
from certctl_core.names import San as San
from certctl_core.names import SanKind as SanKind
from certctl_core.names import normalise_sans as normalise_sans
from certctl_core.names import parse_san as parse_san
from certctl_core.parsed import EKU_OIDS as EKU_OIDS
from certctl_core.parsed import CertificateFacts as CertificateFacts
from certctl_core.parsed import fingerprint as fingerprint
from certctl_core.parsed import normalise_fingerprint as normalise_fingerprint
from certctl_core.parsed import read_certificate as read_certificate
from certctl_core.parsed import serial_hex as serial_hex
