//! What a plain word is to kubectl, whose YAML is that of Go's package yaml.v2: mostly YAML 1.1.

/// A word without quotes and tags.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    Null,
    Bool(bool),
    Whole(i128),
    Double(f64),
    /// An infinity, or no number: JSON has neither.
    Endless,
    Text,
}

pub fn resolved(word: &str) -> Scalar {
    match word {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Scalar::Bool(true),
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Scalar::Bool(false),
        "" | "~" | "null" | "Null" | "NULL" => Scalar::Null,
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => Scalar::Endless,
        word if word.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) => number(word),
        _ => Scalar::Text,
    }
}

fn number(word: &str) -> Scalar {
    // Behind a point nothing is left out.
    let spelt = if word.starts_with('.') { word.to_owned() } else { word.replace('_', "") };
    let (sign, digits) = match spelt.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, spelt.strip_prefix('+').unwrap_or(&spelt)),
    };
    let head = digits.get(..2).unwrap_or_default().to_ascii_lowercase();
    let (base, digits) = match head.as_str() {
        "0x" => (16, &digits[2..]),
        "0b" => (2, &digits[2..]),
        "0o" => (8, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    let is_whole = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
    let whole = i128::from_str_radix(digits, base).ok().filter(|_| is_whole).map(|number| sign * number);
    match whole.filter(|number| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(number)) {
        Some(number) => Scalar::Whole(number),
        None if is_decimal(&spelt) => match spelt.parse::<f64>() {
            Ok(double) if double.is_finite() => Scalar::Double(double),
            _ => Scalar::Text,
        },
        None => Scalar::Text,
    }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_decimal(word: &str) -> bool {
    let word = word.strip_prefix(['-', '+']).unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (word, None),
    };
    let all_digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let is_mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && all_digits(fraction),
        Some((whole, fraction)) => all_digits(whole) && all_digits(fraction),
        None => !mantissa.is_empty() && all_digits(mantissa),
    };
    let exponent = exponent.map(|exponent| exponent.strip_prefix(['-', '+']).unwrap_or(exponent));
    is_mantissa && exponent.is_none_or(|exponent| !exponent.is_empty() && all_digits(exponent))
}
