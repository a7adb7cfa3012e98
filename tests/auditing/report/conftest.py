"""One full report that several test files read."""

import pytest
from audits import full_audit, report, without_images


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of one full report, and its page without the images' bytes."""
    folder = tmp_path_factory.mktemp("whole") / "deep" / "audit"
    return folder, without_images(report(full_audit(), folder))
