//! Reading Rust source as far as the invariants need it: what is code, and which paths it names.
//!
//! No parser: comments, texts and characters are skipped, the rest is searched. What that cannot
//! tell apart, such as a name brought in by a macro, it does not see.

/// The source without comments, texts and its test module, which stands last.
#[must_use]
pub fn code(text: &str) -> String {
    let stripped = code_with_tests(text);
    match stripped.find("#[cfg(test)]\nmod ") {
        Some(begin) => stripped[..begin].to_owned(),
        None => stripped,
    }
}

/// The source without comments and the insides of texts.
#[must_use]
pub fn code_with_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            raw.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\''
            && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\''))
        {
            quoted(rest, '\'')
        } else {
            kept.push(first);
            first.len_utf8()
        };
        rest = &rest[skipped..];
    }
    kept
}

/// Bytes of a literal that begins and ends with `mark`.
fn quoted(text: &str, mark: char) -> usize {
    let mut escaped = false;
    for (at, one) in text.char_indices().skip(1) {
        if one == mark && !escaped {
            return at + one.len_utf8();
        }
        escaped = one == '\\' && !escaped;
    }
    text.len()
}

/// All paths that begin at the crate's root, groups spelled out: `crate::{a::b, c}` gives both.
#[must_use]
pub fn crate_paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("crate::") {
        rest = &rest[at + "crate::".len()..];
        spell_out("", rest, &mut found);
    }
    found
}

/// Reads one path after `prefix`, and gives how much of `text` it took.
fn spell_out(prefix: &str, text: &str, found: &mut Vec<String>) -> usize {
    let trimmed = text.trim_start();
    let begin = text.len() - trimmed.len();
    let name: String = trimmed
        .chars()
        .take_while(|one| one.is_alphanumeric() || *one == '_')
        .collect();
    let path = format!("{prefix}{name}");
    let mut at = begin + name.len();
    if name.is_empty() && trimmed.starts_with('{') {
        at += 1;
        while at < text.len() {
            at += spell_out(prefix, &text[at..], found);
            at += text[at..].len() - text[at..].trim_start().len();
            if !text[at..].starts_with(',') {
                return at + 1;
            }
            at += 1;
        }
        return at;
    }
    if text[at..].starts_with("::") {
        return at + 2 + spell_out(&format!("{path}::"), &text[at + 2..], found);
    }
    if !name.is_empty() {
        found.push(path);
    }
    // `as another_name`, `*`.
    at + text[at..]
        .find([',', '}', ';', '(', ')', '<', '>'])
        .unwrap_or(text.len() - at)
}

/// Whether an identifier occurs, as a whole.
#[must_use]
pub fn has_word(code: &str, word: &str) -> bool {
    let part = |one: char| one.is_alphanumeric() || one == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::{code, crate_paths, has_word};

    #[test]
    fn groups_of_imports_are_spelled_out() {
        let text = "use crate::{units::{Time, Span}, wire as other, limits::*}; crate::peer::new()";
        assert_eq!(
            crate_paths(text),
            ["units::Time", "units::Span", "wire", "peer::new"],
        );
    }

    #[test]
    fn comments_and_texts_are_no_code() {
        let text = "// HashMap\nlet a = \"HashMap\\\"\"; /* HashMap */ let b: &'static str = r#\"HashMap\"#; '\"'; c";
        let code = code(text);
        assert!(!has_word(&code, "HashMap"), "{code}");
        assert!(code.ends_with("; c"), "{code}");
    }
}
