"""What Stanford's PTBTokenizer 3.4.1 takes for a token: patterns in order of preference, and what it makes of each."""

from __future__ import annotations

import re
from collections.abc import Callable

from lrx.nlg import ptb_characters

Action = Callable[[str], tuple[str, int]]  # the text found -> (the token or "" for none, characters to go on behind)

_AMPERSAND = re.compile("&amp;", re.IGNORECASE)
_ENTITY = re.compile("&apos;|&quot;", re.IGNORECASE)

# Words that are split without an apostrophe: lower-case text -> characters of its first token.
SPLIT = {"cannot": 3, "'twas": 2, "'tis": 2, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}


def _keep(text: str) -> tuple[str, int]:
    return text, len(text)


def _drop(text: str) -> tuple[str, int]:
    return "", len(text)


def _soft(text: str) -> tuple[str, int]:
    """Without soft hyphens."""
    return text.replace("\u00ad", "") or "-", len(text)


def _again(text: str) -> tuple[str, int]:
    """With its full stop, which follows again as a token: the end of a sentence."""
    return text, len(text) - 1


def _again_acronym(text: str) -> tuple[str, int]:
    """As ``_again``; of a single letter ("I.") the full stop is no part."""
    return (text[:1], 1) if len(text) == 2 else _again(text)


def _blank(text: str) -> tuple[str, int]:
    """Blanks inside become no-break spaces, parentheses their names."""
    return text.replace(" ", "\u00a0"), len(text)


def _parentheses(text: str) -> tuple[str, int]:
    return text.replace("(", "-LRB-").replace(")", "-RRB-"), len(text)


def _phone(text: str) -> tuple[str, int]:
    return _parentheses(_blank(text)[0])[0], len(text)


def _and(text: str) -> tuple[str, int]:
    return _AMPERSAND.sub("&", text), len(text)


def _split(text: str) -> tuple[str, int]:
    return text[: SPLIT[text.lower()]], SPLIT[text.lower()]


def _as(token: str) -> Action:
    return lambda text: (token, len(text))


def _quotes(left: bool) -> Action:
    straight = ("`", "``") if left else ("'", "''")
    table = {
        "'": straight[0], '"': straight[1], **dict.fromkeys("\u0091\u2018\u201b\u2039", "`"),
        **dict.fromkeys("\u0092\u2019\u203a", "'"), **dict.fromkeys("\u0093\u201c\u00ab", "``"),
        **dict.fromkeys("\u0094\u201d\u00bb", "''"),
    }  # fmt: skip

    def replace(text: str) -> tuple[str, int]:
        plain = _ENTITY.sub(lambda m: "'" if m[0].lower() == "&apos;" else '"', text)
        return "".join(table.get(c, c) for c in plain), len(text)

    return replace


def _currency(text: str) -> tuple[str, int]:
    return {"\u00a2": "cents", "\u00a3": "#", **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$")}.get(text, text), 1


def _fraction(text: str) -> tuple[str, int]:
    return dict(zip("¼½¾⅓⅔", ("1/4", "1/2", "3/4", "1/3", "2/3"), strict=True)).get(text, text), 1


def _hyphens(text: str) -> tuple[str, int]:
    return ("--" if 3 <= len(text) <= 4 else text), len(text)


def parts() -> dict[str, str]:
    """Named parts of the patterns."""

    def members(ranges: str) -> str:
        ends = ([chr(int(end, 16)) for end in item.split("-")] for item in ranges.split())
        return "".join(f"{pair[0]}-{pair[-1]}" for pair in ends)

    letters, digits = members(ptb_characters.LETTERS), members(ptb_characters.DIGITS)
    part = {
        "L": f"(?:[{letters}]|&[aeiouAEIOU](?:acute|grave|uml);)",
        "LD": f"(?:[{letters}{digits}]|&[aeiouAEIOU](?:acute|grave|uml);)",
        # Without the combining marks and the soft hyphen, which count only in plain words.
        "N": rf"[[{letters}]&&[\p{{L}}]]",
        "ND": rf"[[[{letters}]&&[\p{{L}}]]{digits}]",
        "D": f"[{digits}]",
        "S": r"[ \t\u00a0\u2000-\u200a\u3000]",
        "NL": r"(?:\r\n|[\r\n\u2028\u2029\x0b\x0c\x85])",
        "A": r"(?:['\x92\u2019]|&apos;)",
        "AE": r"(?:['\x92\u2019`\x91\u2018\u201b]|&apos;)",
        "H": r"[-_\u058a\u2010\u2011]",
        "P": r"[,;:\u3001]",
        "SYMBOLS": members(ptb_characters.SYMBOLS),
    }
    part["SN"] = f"(?:{part['S']}|{part['NL']})"
    name = r"[A-Za-z][A-Za-z0-9_:.\-]*"
    value = r"""(?:'[^'\n]*'|"[^"\n]*")"""
    part["TAG"] = rf"<(?:[!?][A-Za-z\-][^>\r\n]*|{name}(?:[ ]+{name}(?:[ ]*=[ ]*{value})?)*[ ]*/?|/{name})[ ]*>"
    part["AUX"] = f"{part['A']}(?:[msdMSD]|re|ve|ll)"
    part["WORD"] = "{L}{LD}*(?:[.!?]{L}{LD}*)*".format(**part)
    part["NUMBER"] = r"[\-+]?(?:{D}+(?:[.:,\u00ad\u066b\u066c]{D}+)*|(?:[.:,\u00ad\u066b\u066c]{D}+)+)".format(**part)
    acronyms = r"(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|U\.S\.S\.R)"
    part["ACRO"] = rf"(?:{acronyms}|[A-Za-z](?:\.[A-Za-z])*)"
    part["ACRO2"] = rf"(?:{acronyms}|[A-Za-z](?:\.[A-Za-z])+)"
    part["THING"] = "(?:[dDoOlL]{AE}{ND})?{ND}+(?:{H}(?:[dDoOlL]{AE}{ND})?{ND}+)*".format(**part)
    part["THINGA"] = r"[A-Z]+(?:(?:&amp;|[+&])[A-Z]+)+"
    part["HTHING"] = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z0-9\u00ad]+|{ACRO2}\.))+".format(**part)
    # Abbreviations, from the Wall Street Journal of 1987. Capitals stand for themselves where they are in brackets.
    part["SENTENCE"] = (
        r"(?:(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs|Fri|Ala|Ariz|[A]z|[A]rk|Calif|Colo"
        r"|Conn|Ct|Dak|[D]el|Fla|Ga|[I]ll|Ind|Kans?|Ky|[L]a|[M]ass|Md|Mich|Minn|[M]iss|Mo|Mont|Neb|Nev|Okla|[O]re|[P]a"
        r"|Penn|Tenn|[T]ex|Va|Vt|[W]ash|Wisc?|Wyo|Inc|Cos?|Corp|Pp?t[ye]s?|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys"
        r"|tel|est|ext|sq|Jr|Sr|Bros|(?:Ed|Ph)\.D|Blvd|Rd|Esq|etc|al|seq|Bldg)\.)"
    )
    part["TITLE"] = (
        r"(?:Mr|Mrs|Ms|[M]iss|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave"
        r"|Pres|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc|vs|Alex|Wm"
        r"|Jos|Cie|a\.k\.a|cf|TREAS|Ph|Invt|Elec|Natl|M[ft]g|Dept|{ACRO})"
    ).format(**part)
    # After an acronym these begin a new sentence.
    part["STARTS"] = (
        r"(?:[A]bout|[A]ccording|[A]dditionally|[A]fter|[A]n|[A]|[A]s|[A]t|[B]ut|[E]arlier|[H]e|[H]er|[H]ere|[H]owever|[I]f"
        r"|[I]n|[I]t|[L]ast|[M]any|[M]ore|[M]r\.|[M]s\.|[N]ow|[O]nce|[O]ne|[O]ther|[O]ur|[S]he|[S]ince|[S]o|[S]ome|[S]uch"
        r"|[T]hat|[T]he|[T]heir|[T]hen|[T]here|[T]hese|[T]hey|[T]his|[W]e|[W]hen|[W]hile|[W]hat|[Y]et|[Y]ou|{TAG})"
    ).format(**part)
    return part


def patterns() -> list[tuple[str, Action]]:
    """(pattern, what becomes of the text it finds), in order of preference.

    ``{X}``: one of ``parts``. A group, where there is one, is the token and what follows it look-ahead.
    """
    left, right = _quotes(True), _quotes(False)
    url, in_url = r"[^ \t\n\f\r\"<>|.!?(){{}},\-]", r"[^ \t\n\f\r\"<>|()]"
    extensions = (
        "bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql"
        "|tar|txt|wav|x|xml|zip"
    )
    eyes = r"[\-\^x=~<>']"
    return [
        (r"c\+\+", _keep),
        (r"[cC]#|[fF]#", _keep),
        (r"cannot|'twas|'tis|gonna|gotta|lemme|gimme|wanna", _split),
        (r"{TAG}", _blank),
        (r"&(?:MD|mdash|ndash);|[\x96\x97\u2013-\u2015]", _as("--")),
        (r"&amp;", _and),
        (r"&(?:HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);", _keep),
        (r"({WORD}){AUX}", _soft),
        (r"([A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*)n{AE}t", _soft),
        (r"{WORD}", _soft),
        (r"{A}n{A}?|[lLdDjJ]{A}|Dunkin{A}|somethin{A}|ol{A}|{A}em", _keep),
        (r"[A-HJ-XZn]{AE}{N}{{2}}{N}*|{A}[2-9]0s|{A}till?|{A}cause|O{AE}o", _keep),
        (r"{N}{N}*[aeiouyAEIOUY]{AE}[aeiouA-Z]{N}*", _keep),
        (r"cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l", _keep),
        (r"(y{A}){N}", _keep),
        (rf"https?://[^ \t\n\f\r\"<>|(){{{{}}}}]+{url}", _keep),
        (
            rf"(?:www\.(?:[^ \t\n\f\r\"<>|.!?(){{{{}}}},]+\.)+[a-zA-Z]{{{{2,4}}}}"
            rf"|(?:[^ \t\n\f\r\"`'<>|.!?(){{{{}}}},-_$]+\.)+(?:com|net|org|edu))(?:/{in_url}+{url})?",
            _keep,
        ),
        (
            r"(?:&lt;|<)?[a-zA-Z0-9][^ \t\n\f\r\"<>|()\u00a0{{}}]*@(?:[^ \t\n\f\r\"<>|(){{}}.\u00a0]+\.)*"
            r"[^ \t\n\f\r\"<>|(){{}}.\u00a0]+(?:&gt;|>)?",
            _keep,
        ),
        (r"@[a-zA-Z_][a-zA-Z_0-9]*|\#{L}+", _keep),
        (r"({AUX})[^A-Za-z]", right),
        (r"(n{AE}t)[^A-Za-z]", right),
        (r"{D}{{1,2}}[\-/]{D}{{1,2}}[\-/]{D}{{2,4}}", _keep),
        (r"{NUMBER}", _soft),
        (r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)", _keep),
        (r"(?:{D}{{1,4}}[- \u00a0])?{D}{{1,4}}(?:\\?/|\u2044){D}{{1,4}}", _blank),
        (r"[\u00bc\u00bd\u00be\u2153-\u215e]", _fraction),
        (r"-(?:RRB|LRB|RCB|LCB|RSB|LSB)-|C\.D\.s|pro-|anti-|S(?:&amp;|&)P-500|S(?:&amp;|&)Ls|Cap{A}n|c{A}est", _and),
        (r"[A-Za-z0-9]+(?:-[A-Za-z]+){{0,2}}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){{0,2}}){{1,2}}", _keep),
        (r"[A-Z]*\$|\#", _keep),
        (r"[\u00a2-\u00a5\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6]", _currency),
        (r"({ACRO}\.){SN}+{STARTS}{SN}", _again_acronym),
        (r"((?:ca|figs?|prop|nos?|art|bldg|pp|op)\.){SN}?{D}", _keep),
        (r"((?:pt[eyEY]|co)\.){S}(?:ltd|lim)", _keep),
        (r"({SENTENCE}){SN}(?:{TAG}|{SN}|\p{{Lu}})", _again),
        (r"(?s:({SENTENCE})..)", _keep),
        (r"{SENTENCE}", _again),
        (r"{TITLE}\.", _keep),
        (r"({TITLE}){S}", _keep),
        (r"({ACRO}){SN}", _keep),
        (r"({A}[0-9][0-9]){SN}", _keep),
        (rf"({{LD}}+(?:\.{{LD}}+)*\.(?:{extensions}))(?:{{SN}}|[.?!,])", _keep),
        (r"({WORD}\.){P}", _soft),
        (
            r"(?:\([0-9]{{2,3}}\)[ \u00a0]?|(?:\+\+?)?(?:[0-9]{{2,4}}[\- \u00a0])?[0-9]{{2,4}}[\- \u00a0])"
            r"[0-9]{{3,4}}[\- \u00a0]?[0-9]{{3,5}}"
            r"|(?:(?:\+\+?)?[0-9]{{2,4}}\.)?[0-9]{{2,4}}\.[0-9]{{3,4}}\.[0-9]{{3,5}}",
            _phone,
        ),
        (r"(\"|&quot;)[A-Za-z0-9$]", left),
        (r"\"|&quot;", right),
        (r"\x7f", _drop),
        (r"<|&lt;", _as("<")),
        (r">|&gt;", _as(">")),
        (r"([<>]?[:;=][\-o*']?[()DPdpO\\{{@|\[\]])[^A-Za-z0-9]", _parentheses),
        (
            rf"[\^x=~<>]\.\[\^x=~<>\]|{eyes}_{eyes}|\({eyes}[_.]?{eyes}\)|\([\^x=~<>']-[\^x=~<>'`]\)",
            _parentheses,
        ),
        *((rf"\{bracket}", _as(name)) for bracket, name in (("[", "-LSB-"), ("]", "-RSB-"))),
        *((rf"\{bracket * 2}", _as(name)) for bracket, name in (("{", "-LCB-"), ("}", "-RCB-"))),
        *((rf"\{bracket}", _as(name)) for bracket, name in (("(", "-LRB-"), (")", "-RRB-"))),
        (r"-+", _hyphens),
        (r"\.{{3,5}}|(?:\.[ \u00a0]){{2,4}}\.|[\x85\u2026]", _as("...")),
        (r"@+|\#+|_+", _keep),
        (r"\*+|(?:\\\*){{1,3}}", _keep),
        (r"{P}", _keep),
        (r"[?!]+", _keep),
        (r"[.=/¡¿\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]", _keep),
        (r"({HTHING}\.){P}", _soft),
        (r"{HTHING}", _soft),
        (r"({THING}\.){P}", _keep),
        (r"{THING}", _keep),
        (r"({THINGA}\.){P}", _and),
        (r"{THINGA}", _and),
        (r"(')[A-Za-z][^ \t\n\r\u00a0]", left),
        (r"{AUX}|n{AE}t", right),
        (
            r"&apos;|''|[`\u2018-\u201f\x91-\x94\u2039\u203a\u00ab\u00bb]{{1,2}}|['\x92\u2019]",
            right,
        ),
        (r"<<|>>", _keep),
        (r"[+%&~\^|\\{SYMBOLS}]", _keep),
        (r"[\x00\u200b\u200e\u200f\ufeff]|{S}+|&nbsp;", _drop),
        (r"{NL}", _as("\n")),
    ]
