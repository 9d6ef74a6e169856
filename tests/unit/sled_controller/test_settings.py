"""Settings come from a file, the environment and flags, in this order of strength, and say what is wrong with them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import Field, field_validator

from sled_controller.settings import Settings, SettingsError, build_parser, load, merge

PROG = "coffee-maker"


class Tank(Settings):
    """Where the water is."""

    litres: int = Field(description="volume in litres")


class Coffee(Settings):
    """Makes coffee at 100 % strength."""

    beans: str = Field(description="the kind of beans")
    cups: int = Field(default=2, ge=1, le=8, description="how many cups, 1 to 8")
    milk: bool = Field(default=False, description="whether milk goes in")
    extras: list[str] = Field(default=[], description="what else goes in")
    guests: list[str] | None = Field(default=None, description="who is coming")
    prices: dict[str, int] = Field(default={}, description="cents by drink")
    tank: Tank | None = Field(default=None, description="the tank")
    recipe: Path | None = Field(default=None, description="a file to read")

    @field_validator("beans")
    @classmethod
    def _no_robusta(cls, value: str) -> str:
        if value == "Robusta":
            raise ValueError("Robusta is not sold in Turin")
        return value


def settings(
    file: Path | None = None, environ: Mapping[str, str] | None = None, arguments: list[str] | None = None
) -> Coffee:
    argv = [*(arguments or []), *(["--config", str(file)] if file else [])]
    parsed = vars(build_parser(Coffee, PROG).parse_args(argv))
    return merge(Coffee, PROG, parsed, environ or {})


def refusal(
    file: Path | None = None, environ: Mapping[str, str] | None = None, arguments: list[str] | None = None
) -> str:
    with pytest.raises(SettingsError) as caught:
        settings(file, environ, arguments)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "coffee.toml"
    path.write_text('beans = "Arabica"\ncups = 3\n', encoding="utf-8")
    return path


def test_defaults_fill_what_nobody_set() -> None:
    made = settings(environ={"COFFEE_MAKER_BEANS": "Arabica"})
    assert (made.beans, made.cups, made.milk) == ("Arabica", 2, False)


def test_a_file_is_stronger_than_the_defaults(file: Path) -> None:
    assert settings(file).cups == 3


def test_the_environment_is_stronger_than_the_file(file: Path) -> None:
    assert settings(file, {"COFFEE_MAKER_CUPS": "4"}).cups == 4


def test_a_flag_is_stronger_than_the_environment(file: Path) -> None:
    assert settings(file, {"COFFEE_MAKER_CUPS": "4"}, ["--cups", "5"]).cups == 5


def test_the_file_can_be_named_by_the_environment(file: Path) -> None:
    assert settings(environ={"COFFEE_MAKER_CONFIG": str(file)}).beans == "Arabica"


@pytest.mark.parametrize(("flag", "expected"), [("--milk", True), ("--no-milk", False)])
def test_a_boolean_flag_has_both_senses(file: Path, flag: str, expected: bool) -> None:
    assert settings(file, {"COFFEE_MAKER_MILK": str(not expected)}, [flag]).milk is expected


def test_lists_and_tables_are_json_in_flags_and_variables(file: Path) -> None:
    made = settings(file, {"COFFEE_MAKER_PRICES": '{"latte": 320}'}, ["--extras", '["sugar"]'])
    assert made.extras == ["sugar"]
    assert made.prices == {"latte": 320}


def test_a_list_that_may_be_absent_is_json_too(file: Path) -> None:
    assert settings(file, {"COFFEE_MAKER_GUESTS": '["Ada"]'}).guests == ["Ada"]
    assert settings(file).guests is None


def test_a_nested_table_is_json_too(file: Path) -> None:
    assert settings(file, arguments=["--tank", '{"litres": 3}']).tank == Tank(litres=3)


def test_a_path_is_taken_as_it_stands(file: Path) -> None:
    assert settings(file, {"COFFEE_MAKER_RECIPE": "/Some/Where"}).recipe == Path("/Some/Where")


def test_settings_do_not_change_once_loaded(file: Path) -> None:
    made = settings(file)
    with pytest.raises(ValueError, match="frozen"):
        made.cups = 7


def test_a_missing_setting_names_every_way_to_give_it() -> None:
    text = refusal()
    assert "beans" in text
    assert "COFFEE_MAKER_BEANS" in text
    assert "--beans" in text


def test_an_unknown_key_names_the_file_and_the_known_keys(file: Path) -> None:
    file.write_text('beans = "Arabica"\ncup = 3\n', encoding="utf-8")
    text = refusal(file)
    assert text.startswith(f"{file}: cup: ")
    assert "cups" in text


def test_a_wrong_value_names_its_file_and_what_would_fit(file: Path) -> None:
    file.write_text('beans = "Arabica"\ncups = 9\n', encoding="utf-8")
    text = refusal(file)
    assert text.startswith(f"{file}: cups: ")
    assert "how many cups, 1 to 8" in text


def test_a_wrong_value_names_its_variable() -> None:
    text = refusal(environ={"COFFEE_MAKER_BEANS": "Arabica", "COFFEE_MAKER_CUPS": "many"})
    assert text.startswith("environment variable COFFEE_MAKER_CUPS: cups: ")


def test_a_wrong_value_names_its_flag(file: Path) -> None:
    assert refusal(file, arguments=["--cups", "0"]).startswith("flag --cups: cups: ")


def test_a_message_keeps_the_case_of_names(file: Path) -> None:
    text = refusal(file, arguments=["--beans", "Robusta"])
    assert "Robusta is not sold in Turin" not in text
    assert "robusta is not sold in Turin" in text


def test_a_wrong_key_inside_a_table_is_named_by_its_path(file: Path) -> None:
    text = refusal(file, arguments=["--tank", '{"litres": 3, "gallons": 1}'])
    assert text.startswith("flag --tank: tank.gallons: ")
    assert "use one of" not in text


def test_every_problem_is_reported_at_once(file: Path) -> None:
    file.write_text("cups = 9\nmilk = 17\n", encoding="utf-8")
    keys = {line.split(": ")[1] for line in refusal(file).splitlines()}
    assert keys == {"beans", "cups", "milk"}


@pytest.mark.parametrize("text", ["sugar", "[", "[" * 100_000], ids=["word", "cut off", "deep"])
def test_what_is_not_json_is_refused_with_the_remedy(file: Path, text: str) -> None:
    refused = refusal(file, arguments=["--extras", text])
    assert refused.startswith("flag --extras: extras: is not JSON")
    assert "as JSON" in refused


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    assert refusal(path).startswith(f"{path}: cannot be read: No such file")


@pytest.mark.parametrize("content", [b"beans = ", b"\xff\xfe\x00", b'beans = "a"\nbeans = "b"\n'])
def test_a_file_that_is_not_toml_is_named(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert refusal(file).startswith(f"{file}: is not TOML")


def test_help_shows_each_flag_with_its_variable_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(Coffee, PROG, ["--help"], {})
    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "how many cups, 1 to 8 [COFFEE_MAKER_CUPS; default 2]" in text
    assert "the kind of beans [COFFEE_MAKER_BEANS; required]" in text
    assert "100 % strength" in text


def test_a_program_with_wrong_settings_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(Coffee, PROG, ["--cups", "9"], {})
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("coffee-maker: ") for line in lines)
