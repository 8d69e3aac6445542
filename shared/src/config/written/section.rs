//! One section of a written configuration: typed values out of it, and advice where that fails.

use toml::{Table, Value};

use super::{SECTIONS, WrittenError};
use crate::config::check::check_range;
use crate::units::Span;

/// A section, present or not.
pub(super) struct Section<'a> {
    name: &'static str,
    table: Option<&'a Table>,
}

impl<'a> Section<'a> {
    /// The section of that name.
    pub(super) fn of(document: &'a Table, name: &'static str) -> Self {
        let table = document.get(name).and_then(Value::as_table);
        Self { name, table }
    }

    fn get(&self, key: &str) -> Option<(&'a Value, String)> {
        let value = self.table?.get(key)?;
        Some((value, format!("{}.{key}", self.name)))
    }

    /// Puts a whole number into `target`; tells whether one was written.
    pub(super) fn number<T: TryFrom<u64>>(
        &self,
        key: &str,
        target: &mut T,
    ) -> Result<bool, WrittenError> {
        let Some((value, key)) = self.get(key) else {
            return Ok(false);
        };
        let &Value::Integer(value) = value else {
            return Err(wrong_type(key, "a whole number", value));
        };
        let Ok(unsigned) = u64::try_from(value) else {
            return Err(WrittenError::Negative { key, value });
        };
        check_range(&key, unsigned as f64)?;
        *target =
            T::try_from(unsigned).map_err(|_too_large| WrittenError::TooLarge { key, value })?;
        Ok(true)
    }

    /// Puts a number into `target`, where one was written.
    pub(super) fn float(&self, key: &str, target: &mut f64) -> Result<(), WrittenError> {
        let Some((value, key)) = self.get(key) else {
            return Ok(());
        };
        let whole = value.as_integer().map(|number| number as f64);
        *target = value
            .as_float()
            .or(whole)
            .ok_or_else(|| wrong_type(key.clone(), "a number", value))?;
        check_range(&key, *target)?;
        Ok(())
    }

    /// Puts a length of time, written in units of `unit_secs`, into `target`, where one was written.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the bounds of every key with a unit of time are within 0 and a day"
    )]
    pub(super) fn span(
        &self,
        key: &str,
        unit_secs: f64,
        target: &mut Span,
    ) -> Result<(), WrittenError> {
        let mut units = f64::NAN;
        self.float(key, &mut units)?;
        if !units.is_nan() {
            *target = Span::from_micros((units * unit_secs * 1e6).round() as u64);
        }
        Ok(())
    }

    /// Puts a text into `target`, where one was written.
    pub(super) fn text(&self, key: &str, target: &mut String) -> Result<(), WrittenError> {
        if let Some((value, key)) = self.get(key) {
            let text = value.as_str();
            target.clear();
            target.push_str(text.ok_or_else(|| wrong_type(key, "a text in quotes", value))?);
        }
        Ok(())
    }

    /// One of `choices`, if anything was written.
    pub(super) fn choice<'c>(
        &self,
        key: &str,
        choices: &[&'c str],
    ) -> Result<Option<&'c str>, WrittenError> {
        let mut word = String::new();
        self.text(key, &mut word)?;
        if self.get(key).is_none() {
            return Ok(None);
        }
        match choices.iter().find(|&&choice| choice == word) {
            Some(&choice) => Ok(Some(choice)),
            None => Err(WrittenError::Choice {
                key: format!("{}.{key}", self.name),
                advice: advice(&word, choices),
                value: word,
            }),
        }
    }
}

/// What a name stands for, in a table that has it.
pub(super) fn lookup<T: Copy>(table: &[(&str, T)], name: &str) -> T {
    let found = table.iter().find(|(other, _)| *other == name);
    found.expect("names were chosen from this table").1
}

/// What a value is called in a table of names.
pub(super) fn named<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    let found = table.iter().find(|(_, other)| *other == value);
    found.expect("every value has a name in its table").0
}

/// Checks that every section and key is one that somebody reads.
pub(super) fn check_names(document: &Table, of_others: &[&str]) -> Result<(), WrittenError> {
    let ours = SECTIONS.iter().map(|(section, _)| *section);
    let sections: Vec<&str> = ours.chain(of_others.iter().copied()).collect();
    for (name, value) in document {
        if of_others.contains(&name.as_str()) {
            continue;
        }
        let known = SECTIONS.iter().find(|(section, _)| section == name);
        let Some(table) = value.as_table() else {
            return Err(match known {
                Some((section, _)) => wrong_type((*section).to_owned(), "a [section]", value),
                None => WrittenError::Outside {
                    key: name.clone(),
                    advice: belongs(name).unwrap_or_else(|| advice(name, &all_keys())),
                },
            });
        };
        let &(section, keys) = known.ok_or_else(|| WrittenError::Section {
            section: name.clone(),
            advice: advice(name, &sections),
        })?;
        if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
            return Err(WrittenError::Key {
                section,
                key: key.clone(),
                advice: belongs(key).unwrap_or_else(|| advice(key, keys)),
            });
        }
    }
    Ok(())
}

fn all_keys() -> Vec<&'static str> {
    let keys = SECTIONS.iter().flat_map(|(_, keys)| keys.iter());
    keys.copied().collect()
}

/// Where a key that is right but in the wrong place belongs.
fn belongs(key: &str) -> Option<String> {
    let (section, _) = SECTIONS.iter().find(|(_, keys)| keys.contains(&key))?;
    Some(format!("it belongs to [{section}]"))
}

/// The nearest of `candidates`, or all of them where none is near.
fn advice(word: &str, candidates: &[&str]) -> String {
    let nearness = |candidate: &str| strsim::normalized_damerau_levenshtein(word, candidate);
    let nearest = candidates
        .iter()
        .copied()
        .max_by(|a, b| nearness(a).total_cmp(&nearness(b)));
    match nearest {
        Some(candidate) if nearness(candidate) >= 0.5 => format!("did you mean `{candidate}`?"),
        Some(_) | None => format!("it is one of {}", candidates.join(", ")),
    }
}

fn wrong_type(key: String, wanted: &'static str, found: &Value) -> WrittenError {
    WrittenError::Type {
        key,
        wanted,
        found: match found {
            Value::String(_) => "a text",
            Value::Integer(_) | Value::Float(_) => "a number",
            Value::Boolean(_) => "true or false",
            Value::Datetime(_) => "a date",
            Value::Array(_) => "a list",
            Value::Table(_) => "a section",
        },
    }
}
