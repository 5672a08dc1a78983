"""Splits units and currencies from a value."""

import re
from functools import cache

PERCENT = "%"

# One line per unit: its spellings; symbols and words of SI units with prefixes are generated below.
_SPELLINGS = """
% percent per-cent pct
° º ˚ deg degs degree degrees 度 \\degree ^\\circ ^{\\circ} ^\\degree
°C ℃ °-C degC degrees-C degree-C deg-C celsius degrees-celsius degree-celsius ^\\circ-C ^{\\circ}-C ^\\circC ^{\\circ}C
°F ℉ °-F degF degrees-F degree-F deg-F fahrenheit degrees-fahrenheit degree-fahrenheit ^\\circ-F ^{\\circ}-F ^\\circF ^{\\circ}F
rad radian radians
¢ cent cents
min mins minute minutes 分钟
h hr hrs hour hours 小时 時間
day days 天 日
week weeks 周
month months 月
year years yr yrs years-old year-old 岁 年
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
N·m Nm newton-meter newton-meters
kWh kilowatt-hour kilowatt-hours
dB decibel decibels
psi
ppm
rpm
bpm
atm atmosphere atmospheres
bar bars
fps frames/s
px pixel pixels
frame frames 帧
people person persons 人 位 名 명
item items 个 個 只 件 条 张 本 块 辆 개
time times 次 回 회
unit units
"""
# Currencies; signs and codes in capitals may also precede a number.
_MONEY = """
$ US$ USD dollar dollars US-dollars 美元
€ EUR euro euros 欧元
£ GBP pound-sterling pounds-sterling
¥ CNY RMB JPY yen yuan 元 円
₹ INR Rs Rs. rupee rupees
₩ KRW won 원
₽ RUB ruble rubles руб
₺ TRY
₫ VND dong
₱ PHP
฿ THB baht
₪ ILS shekel shekels
₦ NGN naira
CHF franc francs
kr SEK NOK DKK krona kronor krone kroner
A$ AUD
C$ CA$ CAD
HK$ HKD
NT$ TWD
NZ$ NZD
S$ SGD
R$ BRL reais
"""
_SI = {"m": "meter metre", "g": "gram", "s": "second", "L": "liter litre", "N": "newton", "J": "joule", "W": "watt"}
_SI |= {"V": "volt", "A": "ampere amp", "Hz": "hertz", "Pa": "pascal", "Ω": "ohm", "C": "coulomb", "F": "farad"}
_SI |= {"K": "kelvin", "mol": "mole", "T": "tesla", "eV": "electronvolt", "B": "byte", "bit": "bit", "lm": "lumen"}
_PREFIXES = {"": "", "k": "kilo", "c": "centi", "d": "deci", "m": "milli", "μ": "micro", "n": "nano", "M": "mega"}
_PREFIXES |= {"G": "giga", "T": "tera"}
_ALSO = {"L": ["l"], "s": ["sec", "secs", "秒"], "Ω": ["\\Omega"], "m": ["米"], "cm": ["厘米"], "km": ["公里", "千米"]}
_ALSO |= {
    "kg": ["kgs", "公斤", "千克"],
    "mL": ["ml"],
    "μm": ["um", "micron", "microns"],
    "μs": ["us"],
    "h": ["hr"],
    "mm": ["毫米"],
}
_LETTERS = frozenset("msghNLlJWVAKCFT")  # units of one letter; other letters are symbols if symbols are possible


_POWER = r"(?:\^?\{?([+-]?[1-4])\}?|([²³]))"
_FACTOR = re.compile(rf"([^\d\s^²³{{}}/·⋅*+-]+){_POWER}?")
_SIGNS = sorted(set(re.findall(r"\S*[^\w\s-]|[A-Z]{3}\b|\bRs\b|\bkr\b", _MONEY)), key=len, reverse=True)
_CURRENCY = re.compile(rf"(-?)\s*\\?({'|'.join(map(re.escape, _SIGNS))})\s*(?=[-\d.])")
_STYLED = re.compile(r"\\(?:text|textrm|mathrm|rm|mbox|unit|operatorname)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\s|\\[ ,;:!]|~)+")
_TAIL = re.compile(r"(?:(?<=[\d.)}½⅓⅔¼¾π])|(?<=\\pi))(?=[^\W\d]|[°˚%℃℉$€£¥₹₩₽₺₫₱฿₪₦¢\\~^\s])")
_ASSIGNED, _SYMBOL = re.compile(r"^[A-Za-z] ?="), re.compile(r"[A-Za-z]")
_COMMAND = re.compile(r"\\[A-Za-z]+|pi|sqrt|(?<=\d)[eE](?=[+-]?\d)")
_MATH = re.compile(r"\$([^$]+)\$\s*([^$]+)")
_MAX_TAIL = 60  # characters of a unit
_COMPOUND = {"h^-1·km": "km/h", "h^-1·mi": "mph"}


def split_unit(text: str, algebra: bool = False) -> tuple[str, str | None]:
    r"""Split "12 cm", "$5", "3 m/s^2", "30°", "75\%", "12 \text{ N}" into the value and the name of its unit or None.

    Spellings of the same unit have one name ("12 centimeters", "12 cm"). Words that are not a known unit are kept.

    Args: algebra: whether letters may be symbols. Then one letter is a unit only after a space or in `\text{}`.
    """
    text = text.strip()
    if (math := _MATH.fullmatch(text)) and (unit := _name(math[2])):
        return math[1].strip(), unit
    if money := _CURRENCY.match(text):
        rest = text[money.end() :].strip()
        unit = _names()[money[2]]
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
    """Whether letters after a value are not symbols: the value has none, and a single letter is set apart."""
    value = _ASSIGNED.sub("", value)
    if _SYMBOL.search(_COMMAND.sub("", value)):
        return False
    single = len(bare) == 1 and bare.isascii() and bare.isalpha()
    return not single or (bare != written and bare in _LETTERS and not re.search(r"(?<![{^eE])[+=-]", value[1:]))


def _name(written: str) -> str | None:
    """Return the canonical name of a unit, such as "m·s^-2" for "m/s²", "meters per second squared" or "m s^{-2}"."""
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
    """Return spelling -> name of the unit."""
    names = {}
    for line in (_SPELLINGS + _MONEY.strip()).strip().split("\n"):
        spellings = line.split()
        spellings += [spelling.lower() for spelling in spellings if spelling != "TRY"]
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
