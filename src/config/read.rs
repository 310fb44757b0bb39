//! JSON objects read key by key: every error names the path of its key and what was expected.
//!
//! Values are never printed, because any of them may be a secret; only their kind is.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

use machine::Class;
use serde_json::{Map, Value};

use super::keys::{self, Level};
use crate::failure::{Failure, Outcome, nearest};

/// Something in the configuration that has no effect, with the path of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub path: String,
    pub message: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// What one reading of a configuration gathers on the side.
#[derive(Debug, Default)]
pub(super) struct Notes {
    pub warnings: RefCell<Vec<Warning>>,
    pub asked: RefCell<BTreeSet<(Level, &'static str)>>,
}

impl Notes {
    pub fn warn(&self, path: String, message: impl Into<String>) {
        let message = message.into();
        self.warnings.borrow_mut().push(Warning { path, message });
    }
}

/// A value that may be missing or null, which mean different things for some keys.
pub(super) enum Found<T> {
    Unset,
    Null,
    Is(T),
}

impl<T> Found<T> {
    /// Null counts as unset.
    pub fn or(self, default: T) -> T {
        self.option().unwrap_or(default)
    }

    pub fn option(self) -> Option<T> {
        match self {
            Found::Unset | Found::Null => None,
            Found::Is(value) => Some(value),
        }
    }

    /// Null means "none" where unset means the default.
    pub fn or_none(self, default: T) -> Option<T> {
        match self {
            Found::Unset => Some(default),
            Found::Null => None,
            Found::Is(value) => Some(value),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Object<'a> {
    level: Level,
    path: &'a str,
    map: &'a Map<String, Value>,
    notes: &'a Notes,
}

impl<'a> Object<'a> {
    /// Warns about keys that the level does not have.
    pub fn new(
        level: Level,
        path: &'a str,
        value: &'a Value,
        notes: &'a Notes,
    ) -> Outcome<Object<'a>> {
        let map = value
            .as_object()
            .ok_or_else(|| wrong(path, "an object", value))?;
        let object = Object {
            level,
            path,
            map,
            notes,
        };
        for name in map.keys() {
            if keys::of(level).all(|key| key.name != name) {
                notes.warn(object.path(name), unknown(level, name));
            }
        }
        Ok(object)
    }

    pub fn path(&self, name: &str) -> String {
        match self.path {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    pub fn wrong(&self, name: &str, expected: &str) -> Failure {
        let found = self.map.get(name).unwrap_or(&Value::Null);
        wrong(&self.path(name), expected, found)
    }

    pub fn value(&self, name: &'static str) -> Found<&'a Value> {
        debug_assert!(keys::of(self.level).any(|key| key.name == name));
        self.notes.asked.borrow_mut().insert((self.level, name));
        match self.map.get(name) {
            None => Found::Unset,
            Some(Value::Null) => Found::Null,
            Some(value) => Found::Is(value),
        }
    }

    /// For a value that is passed over.
    pub fn warn(&self, name: &str, message: &str) {
        self.notes.warn(self.path(name), message);
    }

    /// What Python takes for false, which switches some of PGHoard's keys off.
    pub fn is_falsy(&self, name: &'static str) -> bool {
        match self.value(name).option() {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Number(number)) => number.as_f64() == Some(0.0),
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Bool(true)) => false,
        }
    }

    fn convert<T>(
        &self,
        name: &'static str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Outcome<Found<T>> {
        Ok(match self.value(name) {
            Found::Unset => Found::Unset,
            Found::Null => Found::Null,
            Found::Is(value) => {
                Found::Is(convert(value).ok_or_else(|| self.wrong(name, expected))?)
            }
        })
    }

    pub fn text(&self, name: &'static str) -> Outcome<Found<String>> {
        self.convert(name, "a text", |value| value.as_str().map(str::to_owned))
    }

    pub fn flag(&self, name: &'static str) -> Outcome<Found<bool>> {
        self.convert(name, "true or false", Value::as_bool)
    }

    /// A whole number that fits `T`; PGHoard accepts `5.0` too.
    pub fn whole<T: TryFrom<i64>>(&self, name: &'static str, expected: &str) -> Outcome<Found<T>> {
        self.convert(name, expected, |value| {
            let number = value.as_i64().or_else(|| whole_float(value.as_f64()?))?;
            T::try_from(number).ok()
        })
    }

    /// A number of at least 0.
    pub fn number(&self, name: &'static str) -> Outcome<Found<f64>> {
        self.convert(name, "a number of at least 0", |value| {
            value.as_f64().filter(|number| *number >= 0.0)
        })
    }

    pub fn one_of<T: Copy>(&self, name: &'static str, choices: &[(&str, T)]) -> Outcome<Found<T>> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        self.convert(name, &expected, |value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| *name == text).map(|c| c.1)
        })
    }

    pub fn list(&self, name: &'static str) -> Outcome<&'a [Value]> {
        let found = self.convert(name, "a list", Value::as_array)?;
        Ok(found.option().map_or(&[], Vec::as_slice))
    }

    /// An object whose keys are the user's own.
    pub fn map(&self, name: &'static str) -> Outcome<Option<&'a Map<String, Value>>> {
        Ok(self.convert(name, "an object", Value::as_object)?.option())
    }

    /// Reads an object of a known level, if it is there.
    pub fn section<T>(
        &self,
        name: &'static str,
        level: Level,
        read: impl FnOnce(&Object<'_>) -> Outcome<T>,
    ) -> Outcome<Option<T>> {
        let Some(value) = self.value(name).option() else {
            return Ok(None);
        };
        let path = self.path(name);
        read(&Object::new(level, &path, value, self.notes)?).map(Some)
    }
}

/// Below 2^53, where whole floats are exact.
fn whole_float(number: f64) -> Option<i64> {
    let text = format!("{number:.0}");
    let exact = number.fract() == 0.0 && number.abs() < 9e15;
    exact.then(|| text.parse().ok()).flatten()
}

pub(super) fn wrong(path: &str, expected: &str, found: &Value) -> Failure {
    let kind = match found {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "another number",
        Value::String(_) => "another text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let kind = match (expected, kind) {
        (_, "another number") if !expected.contains("number") => "a number",
        (_, "another text") if !expected.contains("one of") => "a text",
        (_, kind) => kind,
    };
    let path = if path.is_empty() {
        "the configuration"
    } else {
        path
    };
    Failure::new(
        Class::Config,
        format!("{path}: expected {expected}, found {kind}"),
    )
}

fn unknown(level: Level, name: &str) -> String {
    if let Some(known) = nearest(name, keys::of(level).map(|key| key.name)) {
        return format!("unknown key, ignored; did you mean {known}?");
    }
    match keys::all().find(|key| key.name == name) {
        Some(key) => format!(
            "unknown key here, ignored; it belongs to {}",
            key.level.name()
        ),
        None => "unknown key, ignored".to_owned(),
    }
}
