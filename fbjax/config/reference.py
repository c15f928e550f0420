"""The page of all settings, from the schema: ``python -m fbjax.config.reference > docs/reference/settings.md``."""

import dataclasses
from collections.abc import Iterator

from fbjax.config.renamed import RENAMED
from fbjax.config.schema import TASKS, Config, ParameterGroup
from fbjax.config.settings import INTERVALS, choices, settings_of

HEAD = """# Settings

A config file changes settings; `--config.section.field=value` on the command line changes one for a run. A resumed run
must have the settings that it began with, but for those marked *may change*. This page is generated from the code:
`python -m fbjax.config.reference`.
"""
SECTIONS = {
    "tasks": "Each task that a config names has settings of its own. `--config.tasks=mlm,tia` chooses tasks.",
    "groups": "`groups` trains the parameters whose names begin with a group's name at a rate of their own, or freezes "
    'them: `c.groups = {"patches": {"rate": 0.1}}`. Of several groups that fit a parameter, the longest name counts.',
}


def settings_page() -> str:
    """Markdown of every setting by section, its default, what it allows and what it means."""
    parts = [HEAD]
    for field in dataclasses.fields(Config):
        default = getattr(Config(), field.name)
        if field.name == "tasks":
            parts += [f"## tasks\n\n{SECTIONS['tasks']}\n"]
            parts += [_section(TASKS[name], f"tasks.{name}", "###", TASKS[name].about.title) for name in TASKS]
        elif field.name == "groups":
            parts += [
                f"## groups\n\n{SECTIONS['groups']}\n\n" + "\n".join(_table(ParameterGroup, "groups.NAME")) + "\n"
            ]
        elif dataclasses.is_dataclass(default):
            parts += [_section(type(default), field.name, "##", (type(default).__doc__ or "").split("\n")[0])]
    parts += ["## plugins\n\n" + "\n".join(_table(Config, "")) + "\n"]
    gone = [f"| `{name}` | {told.replace('config.', '')} |" for name, told in sorted(RENAMED.items())]
    parts += ["\n".join(["## Settings of older versions\n", "| setting | |", "|---|---|", *gone]) + "\n"]
    return "\n".join(parts)


def _section(section: type, prefix: str, level: str, about: str) -> str:
    return "\n".join([f"{level} {prefix}\n", f"{about}\n" if about else "", *_table(section, prefix)]) + "\n"


def _table(section: type, prefix: str) -> Iterator[str]:
    yield "| setting | default | allowed | meaning |"
    yield "|---|---|---|---|"
    for name, field in _fields(section, prefix):
        known = choices(field[0], field[1].name)
        interval = field[1].metadata["interval"]
        allowed = ", ".join(f"`{value or repr(value)}`" for value in known) or INTERVALS.get(interval, interval)
        about = field[1].metadata["about"].replace("|", "\\|") + "; *may change*" * field[1].metadata["may_change"]
        yield f"| `{name}` | `{field[1].default!r}` | {allowed} | {about} |"


def _fields(section: type, prefix: str) -> Iterator[tuple[str, tuple[type, dataclasses.Field]]]:
    """(dotted name, (section, field)) of the plain settings, those of a section inside included."""
    for field in settings_of(section):
        yield f"{prefix}.{field.name}".lstrip("."), (section, field)
    for field in dataclasses.fields(section):
        if prefix and dataclasses.is_dataclass(field.default):
            yield from _fields(type(field.default), f"{prefix}.{field.name}")


if __name__ == "__main__":
    print(settings_page(), end="")
