//! A file as kubectl takes it apart: documents of YAML between lines of `---`, or values of JSON one after the other.

use std::borrow::Cow;

/// What kubectl does not take, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub line: u64,
    pub why: String,
}

fn refused(index: usize, why: impl Into<String>) -> Refused {
    Refused { line: u64::try_from(index).map_or(0, |index| index + 1), why: why.into() }
}

/// The texts that are to be read one by one, each with the line numbers of the whole.
pub fn parts(text: &str) -> Result<Vec<Cow<'_, str>>, Refused> {
    if is_json(text) {
        return json(text);
    }
    let mut ended = None;
    let mut fresh = true;
    for (index, line) in text.lines().enumerate() {
        let blank = line.trim().is_empty() || line.trim_start().starts_with('#');
        if let Some(behind) = line.strip_prefix("---") {
            let behind = behind.trim();
            if !behind.is_empty() && !behind.starts_with('#') {
                return Err(refused(index, "kubectl takes nothing but a comment behind ---"));
            }
            (ended, fresh) = (None, true);
        } else if line.trim_end() == "..." {
            ended = Some(index);
        } else if let (Some(_), false) = (ended, blank) {
            return Err(refused(index, "kubectl does not read what follows ... ; begin it with ---"));
        } else if fresh && line.starts_with('%') {
            return Err(refused(index, "kubectl takes no directives; leave the line out"));
        } else if !blank {
            fresh = false;
        }
    }
    Ok(vec![Cow::Borrowed(text)])
}

/// A file that begins so is JSON to kubectl, whatever it is called.
pub fn is_json(text: &str) -> bool {
    text.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).starts_with('{')
}

fn json(text: &str) -> Result<Vec<Cow<'_, str>>, Refused> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    let (mut parts, mut from) = (Vec::new(), 0);
    while let Some(value) = values.next() {
        if let Err(wrong) = value {
            let why = format!("a file that begins with {{ is JSON to kubectl, and this is none: {wrong}");
            return Err(refused(wrong.line().saturating_sub(1), why));
        }
        let before = "\n".repeat(text[..from].matches('\n').count());
        parts.push(if from == 0 {
            Cow::Borrowed(&text[..values.byte_offset()])
        } else {
            Cow::Owned(before + &text[from..values.byte_offset()])
        });
        from = values.byte_offset();
    }
    Ok(parts)
}
