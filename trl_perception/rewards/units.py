"""Units and currencies beside a value, which are left aside."""

import re
from functools import cache

PERCENT = "%"

# One line a unit, its spellings; of SI units, with prefixes, the symbols and words are made below.
_SPELLINGS = """
% percent per-cent pct
° deg degs degree degrees \\degree ^\\circ ^{\\circ} ^\\degree
°C ℃ °-C degC degrees-C degree-C deg-C celsius degrees-celsius degree-celsius ^\\circ-C ^{\\circ}-C ^\\circC ^{\\circ}C
°F ℉ °-F degF degrees-F degree-F deg-F fahrenheit degrees-fahrenheit degree-fahrenheit ^\\circ-F ^{\\circ}-F ^\\circF ^{\\circ}F
rad radian radians
$ usd dollar dollars us$ us-dollars 美元
¢ cent cents
€ eur euro euros 欧元
£ gbp pound-sterling pounds-sterling
¥ cny rmb jpy yen yuan 元 円
₹ inr rupee rupees rs rs.
min mins minute minutes 分钟
h hr hrs hour hours 小时 時間
day days 天
week weeks
month months
year years yr yrs
inch inches in
ft foot feet
yd yard yards
mi mile miles
mph miles-per-hour
km/h kph kmh kmph kilometers-per-hour kilometres-per-hour
ha hectare hectares
acre acres
lb lbs pound pounds
oz ounce ounces
ton tons tonne tonnes
gal gallon gallons
kcal kilocalorie kilocalories
cal calorie calories
kWh kilowatt-hour kilowatt-hours
dB decibel decibels
rpm
bpm
atm atmosphere atmospheres
bar bars
fps frames/s
px pixel pixels
frame frames 帧
people person persons
item items
time times 次
unit units
"""
_SI = {"m": "meter metre", "g": "gram", "s": "second", "L": "liter litre", "N": "newton", "J": "joule", "W": "watt"}
_SI |= {"V": "volt", "A": "ampere amp", "Hz": "hertz", "Pa": "pascal", "Ω": "ohm", "C": "coulomb", "F": "farad"}
_SI |= {"K": "kelvin", "mol": "mole", "T": "tesla", "eV": "electronvolt", "B": "byte", "bit": "bit", "lm": "lumen"}
_PREFIXES = {"": "", "k": "kilo", "c": "centi", "d": "deci", "m": "milli", "μ": "micro", "n": "nano", "M": "mega"}
_PREFIXES |= {"G": "giga", "T": "tera"}
_ALSO = {"L": ["l"], "s": ["sec", "secs", "秒"], "Ω": ["\\Omega"], "m": ["米"], "cm": ["厘米"], "km": ["公里"]}
_ALSO |= {"kg": ["kgs", "公斤", "千克"], "mL": ["ml"], "μm": ["um"], "μs": ["us"], "h": ["hr"], "mm": ["毫米"]}
_LETTERS = frozenset("msghNLlJWVAKCFT")  # units of one letter; others are symbols where there may be any


_POWER = r"(?:\^?\{?([+-]?[1-4])\}?|([²³]))"
_FACTOR = re.compile(rf"([^\d\s^²³{{}}/·⋅*+-]+){_POWER}?")
_CURRENCY = re.compile(r"(-?)\s*((?:US)?\\?\$|[€£¥₹]|Rs\.?|USD|EUR|GBP|CNY|RMB|JPY|INR)\s*(?=[-\d.])")
_STYLED = re.compile(r"\\(?:text|textrm|mathrm|rm|mbox|unit|operatorname)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\s|\\[ ,;:!]|~)+")
_TAIL = re.compile(r"(?:(?<=[\d.)}½⅓⅔¼¾π])|(?<=\\pi))(?=[^\W\d]|[°%℃℉$€£¥₹¢\\~^\s])")
_ASSIGNED, _SYMBOL = re.compile(r"^[A-Za-z] ?="), re.compile(r"[A-Za-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+|pi|sqrt|(?<=\d)[eE](?=[+-]?\d)")
_MAX_TAIL = 60  # characters of a unit
_COMPOUND = {"h^-1·km": "km/h", "h^-1·mi": "mph"}


def split_unit(text: str, algebra: bool = False) -> tuple[str, str | None]:
    r"""(the value, its unit under one name) of "12 cm", "$5", "3 m/s^2", "30°", "75\%", "12 \text{ N}"; None without one.

    Equal units of different spelling have one name ("12 centimeters", "12 cm"). Words that are no known unit stay.

    Args: algebra: whether letters may be symbols. Then one letter is a unit only behind a space or in `\text{}`.
    """
    text = text.strip()
    if money := _CURRENCY.match(text):
        rest = text[money.end() :].strip()
        unit = _names()[money[2].lower().removeprefix("\\")]
        return money[1] + split_unit(rest)[0] if split_unit(rest)[1] == unit else money[1] + rest, unit
    for tail in _TAIL.finditer(text, max(0, len(text) - _MAX_TAIL)):
        written = text[tail.start() :]
        bare = _SPACE.sub(" ", written).strip()
        if algebra and not _beside_a_number(text[: tail.start()], written, bare):
            continue
        if unit := _name(_STYLED.sub(r" \1 ", _SPACE.sub(" ", written))):
            return text[: tail.start()].strip(), unit
    return text, None


def _beside_a_number(value: str, written: str, bare: str) -> bool:
    """Whether letters behind a value are no symbols of it: the value has none, and a single letter stands apart."""
    value = _ASSIGNED.sub("", value)
    if _SYMBOL.search(_COMMAND.sub("", value)):
        return False
    single = len(bare) == 1 and bare.isascii() and bare.isalpha()
    return not single or (bare != written and bare in _LETTERS and not re.search(r"(?<![{^eE])[+=-]", value[1:]))


def _name(written: str) -> str | None:
    """The unit under one name, such as "m·s^-2" for "m/s²", "meters per second squared" or "m s^{-2}"."""
    written = " ".join(written.rstrip(". ").replace("\\%", "%").replace("\\$", "$").split())
    if simple := _named(written):
        return simple
    written = re.sub(r"\b(square|sq\.?|cubic|cu\.?) (\w+)", lambda m: f"{m[2]}^{2 if m[1][0] == 's' else 3}", written)
    written = re.sub(r"(\w+) (squared|cubed)", lambda m: f"{m[1]}^{2 if m[2][0] == 's' else 3}", written)
    powers: dict[str, int] = {}
    for place, part in enumerate(re.split(r"/|\bper\b", re.sub(r" ?\^ ?", "^", written))):
        for factor in re.split(r" ?(?:\\cdot|[·⋅*]) ?| ", part.strip(" ()")):
            found = _FACTOR.fullmatch(factor)
            name = found and _named(found[1])
            if not name:
                return None
            power = int((found[2] or found[3] or "1").translate(str.maketrans("²³", "23")))
            powers[name] = powers.get(name, 0) + (-power if place else power)
    name = "·".join(sorted(name if power == 1 else f"{name}^{power}" for name, power in powers.items()))
    return _COMPOUND.get(name, name)


def _named(word: str) -> str | None:
    names = _names()
    return names.get(word.replace("µ", "μ")) or (names.get(word.lower()) if len(word) > 2 else None)


@cache
def _names() -> dict[str, str]:
    """spelling -> name of the unit."""
    names = {}
    for line in _SPELLINGS.strip().split("\n"):
        spellings = line.split()
        names |= {spelling.replace("-", " "): spellings[0] for spelling in spellings}
        names |= dict.fromkeys(spellings, spellings[0])
    for symbol, words in _SI.items():
        for short, long in _PREFIXES.items():
            unit = short + symbol
            spellings = [unit, *_ALSO.get(unit, ())]
            for word in words.split():
                spellings += [long + word, f"{long}{word}{'es' if word.endswith('z') else 's'}"]
            names |= {spelling: unit for spelling in spellings if spelling not in names}
    return names
