"""bench/make_case.py refuses cases that cannot be, before it writes anything."""

import pytest

from bench.make_case import main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("x --sample text=4,vit=700x14,vae=16x16", "50x1 patch grid does not fit"),
        ("x --sample text=4,vit=14x14,vae=16x16,dropped --joint", "a sample whose text is kept"),
        ("x --sample text=4,vit=14x14x14,vae=16x16", "is not like text=7,vit=28x42,vae=64x96"),
        ("x --sample text=4,vit=14x14,vae=16x16,colour=3", "is not like text=7,vit=28x42,vae=64x96"),
    ],
)
def test_impossible_cases_are_refused_before_anything_is_written(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["make_case.py", *options.split()])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
