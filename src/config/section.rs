//! Reads a merged tree key by key and keeps the books: what was wrong, where each value came from, what nobody asked for.
//!
//! Asking for a key is what makes it known. What is left of a table when its [`Section`] goes out of scope is unknown, so
//! no key can be forgotten in a list beside the code. A mistake never stops the reading: whoever asked gets the default and
//! goes on, and [`Reader::finish`] lets nothing through that had one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::RangeInclusive;

use figment::Figment;
use figment::value::{Dict, Value};

use super::report::{self, DEFAULT, Line, Mistake, Mistakes};
use super::{environment, layers, suggest};
use crate::upstream::proxy::Environment;

/// The books.
pub(super) struct Reader {
    merged: Figment,
    mistakes: Vec<Mistake>,
    lines: Vec<Line>,
    known: Vec<Known>,
    unknown: Vec<Unknown>,
}

/// A table that is being read.
pub(super) struct Section<'r> {
    reader: &'r mut Reader,
    /// From the top; empty at the top.
    path: String,
    left: Dict,
    /// Where the keys stood that were asked for already.
    origins: BTreeMap<String, String>,
}

/// A key that was asked for.
struct Known {
    section: String,
    key: String,
    is_table: bool,
}

/// A key that nobody asked for.
struct Unknown {
    origin: String,
    section: String,
    key: String,
}

/// Whether `check` prints a value.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Plain,
    Secret,
}

impl Reader {
    /// Starts with what went wrong before there was a tree.
    pub(super) fn new(merged: Figment, mistakes: Vec<Mistake>) -> Self {
        Self { merged, mistakes, lines: Vec::new(), known: Vec::new(), unknown: Vec::new() }
    }

    /// The tree. To be asked for once.
    pub(super) fn root(&mut self) -> Section<'_> {
        let left = layers::values(&self.merged);
        Section { reader: self, path: String::new(), left, origins: BTreeMap::new() }
    }

    /// Adds the variables that look like a key and are none.
    pub(super) fn look_for_single_underscores(&mut self, env: &BTreeMap<String, OsString>) {
        self.mistakes.extend(environment::single_underscores(env, &self.keys()));
    }

    /// The proxies that the environment names.
    pub(super) fn proxies(&mut self, env: &BTreeMap<String, OsString>) -> Environment {
        let get = |name: &str| env.get(name).map(|value| value.to_string_lossy().into_owned());
        let (proxies, mistakes) = Environment::read(get);
        let mistake = |(variable, what): (String, String)| Mistake { origin: environment::origin(&variable), key: String::new(), what };
        self.mistakes.extend(mistakes.into_iter().map(mistake));
        proxies
    }

    /// Every key that was asked for, from the top.
    pub(super) fn keys(&self) -> Vec<String> {
        self.known.iter().filter(|known| !known.is_table).map(|known| join(&known.section, &known.key)).collect()
    }

    /// The values in effect, or everything that is wrong.
    pub(super) fn finish(mut self) -> Result<Vec<Line>, Mistakes> {
        let strangers = std::mem::take(&mut self.unknown);
        let mistakes: Vec<Mistake> = strangers.into_iter().map(|unknown| self.explain(unknown)).collect();
        self.mistakes.extend(mistakes);
        if self.mistakes.is_empty() { Ok(self.lines) } else { Err(Mistakes(self.mistakes)) }
    }

    fn explain(&self, unknown: Unknown) -> Mistake {
        let Unknown { origin, section, key } = unknown;
        let siblings = || self.known.iter().filter(|known| known.section == section).map(|known| known.key.as_str());
        let elsewhere = || self.known.iter().find(|known| known.key == key && !known.is_table);
        let hint = if let Some(close) = suggest::closest(&key, siblings()) {
            format!("did you mean {close}?")
        } else if let Some(there) = elsewhere() {
            format!("did you mean {}?", join(&there.section, &there.key))
        } else {
            format!("there are {}", siblings().collect::<Vec<_>>().join(", "))
        };
        Mistake { origin, key: join(&section, &key), what: format!("is not a key; {hint}") }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (key, value) in std::mem::take(&mut self.left) {
            let origin = self.origin_of(&value);
            self.reader.unknown.push(Unknown { origin, section: self.path.clone(), key });
        }
    }
}

impl Section<'_> {
    /// A value that has a default, in the words of the file.
    pub(super) fn value<T>(&mut self, key: &str, default: &str, parse: impl Fn(&str) -> Result<T, String>) -> T {
        if !self.has(key) {
            self.line(key, report::quoted(default), DEFAULT.to_owned());
        }
        self.optional(key, &parse).unwrap_or_else(|| parse(default).expect("every default is valid, and a test reads all of them"))
    }

    /// A value that may be missing; what is wrong counts as missing.
    pub(super) fn optional<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (value, origin) = self.take(key)?;
        let parsed = text(&value).and_then(|text| Ok((report::quoted(text), parse(text)?)));
        self.keep(key, origin, parsed)
    }

    /// A value that may be missing, and is shown as `show` says: it may hold a secret. What `parse` says must not repeat it.
    pub(super) fn masked<T>(&mut self, key: &str, show: impl Fn(&T) -> String, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (value, origin) = self.take(key)?;
        let parsed = text(&value).and_then(parse).map(|value| (report::quoted(&show(&value)), value));
        self.keep(key, origin, parsed)
    }

    /// A value in effect that was written elsewhere than under its key.
    pub(super) fn note(&mut self, key: &str, value: &str, origin: String) {
        self.line(key, report::quoted(value), origin);
    }

    /// A count, as a number or as a text (an environment variable has nothing else), within bounds.
    pub(super) fn count(&mut self, key: &str, default: usize, bounds: RangeInclusive<usize>) -> usize {
        let Some((value, origin)) = self.take(key) else {
            self.line(key, default.to_string(), DEFAULT.to_owned());
            return default;
        };
        let count = match &value {
            Value::Num(_, number) => number.to_i128().and_then(|number| usize::try_from(number).ok()),
            Value::String(_, text) => text.parse().ok(),
            _ => None,
        };
        let count = count.filter(|count| bounds.contains(count));
        let count = count.ok_or_else(|| format!("is no number from {} to {}", bounds.start(), bounds.end()));
        self.keep(key, origin, count.map(|count| (count.to_string(), count))).unwrap_or(default)
    }

    /// A truth.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        let Some((value, origin)) = self.take(key) else {
            self.line(key, default.to_string(), DEFAULT.to_owned());
            return default;
        };
        let truth = match &value {
            Value::Bool(_, truth) => Ok(*truth),
            Value::String(_, text) => text.parse().map_err(|_| format!("{text:?} is neither true nor false")),
            other => Err(format!("is {}; write true or false", kind(other))),
        };
        self.keep(key, origin, truth.map(|truth| (truth.to_string(), truth))).unwrap_or(default)
    }

    /// Some values in an order.
    pub(super) fn list<T>(&mut self, key: &str, default: &[&str], parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let (value, origin) = self.take(key).unwrap_or_else(|| (default.to_vec().into(), DEFAULT.to_owned()));
        self.items(key, &value, origin, Shown::Plain, parse)
    }

    /// Some values that are never shown, none by default. What `parse` says must not repeat them either.
    pub(super) fn secrets<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some((value, origin)) = self.take(key) else { return Vec::new() };
        self.items(key, &value, origin, Shown::Secret, parse)
    }

    fn items<T>(&mut self, key: &str, value: &Value, origin: String, shown: Shown, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let items = match items(value) {
            Ok(items) => items,
            Err(what) => {
                self.mistake(key, what);
                return Vec::new();
            }
        };
        let show = |item: &&str| if shown == Shown::Secret { report::quoted("***") } else { report::quoted(item) };
        let line = format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", "));
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match parse(item) {
                Ok(value) => values.push(value),
                Err(what) => self.mistake(key, format!("item {}: {what}", index + 1)),
            }
        }
        self.line(key, line, origin);
        values
    }

    /// A table within this one; one that is missing is empty.
    pub(super) fn table(&mut self, key: &str) -> Section<'_> {
        let path = join(&self.path, key);
        self.know(key, true);
        let left = match self.left.remove(key) {
            None => Dict::new(),
            Some(Value::Dict(_, table)) => table,
            Some(other) => {
                self.refuse_value(key, &other, format!("is {} where a table belongs", kind(&other)));
                Dict::new()
            }
        };
        Section { reader: self.reader, path, left, origins: BTreeMap::new() }
    }

    /// The keys of a table whose keys are names.
    pub(super) fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }

    /// Whether a key that was not asked for yet is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    /// Of two keys that were not asked for yet, neither makes sense alone.
    pub(super) fn need_each_other(&mut self, one: &str, other: &str) {
        self.need(one, other);
        self.need(other, one);
    }

    /// A key that makes no sense without another; neither was asked for yet.
    pub(super) fn need(&mut self, key: &str, other: &str) {
        if let Some(value) = self.left.get(key).filter(|_| !self.has(other)).cloned() {
            self.refuse_value(key, &value, format!("needs {} beside it", join(&self.path, other)));
        }
    }

    /// Takes out what is under a name that cannot be one.
    pub(super) fn refuse(&mut self, name: &str, what: &str) {
        if let Some(value) = self.left.remove(name) {
            self.refuse_value(name, &value, what.to_owned());
        }
    }

    /// Whether something was wrong with a key already.
    pub(super) fn is_mistaken(&self, key: &str) -> bool {
        let path = join(&self.path, key);
        self.reader.mistakes.iter().any(|mistake| mistake.key == path)
    }

    /// Whether a key that was asked for was written by somebody.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    /// Something is wrong with a key that was asked for.
    pub(super) fn mistake(&mut self, key: &str, what: String) {
        let origin = self.origins.get(key).map_or(DEFAULT, String::as_str).to_owned();
        self.reader.mistakes.push(Mistake { origin, key: join(&self.path, key), what });
    }

    fn refuse_value(&mut self, key: &str, value: &Value, what: String) {
        let origin = self.origin_of(value);
        self.reader.mistakes.push(Mistake { origin, key: join(&self.path, key), what });
    }

    fn take(&mut self, key: &str) -> Option<(Value, String)> {
        self.know(key, false);
        let value = self.left.remove(key)?;
        let origin = self.origin_of(&value);
        self.origins.insert(key.to_owned(), origin.clone());
        Some((value, origin))
    }

    fn keep<T>(&mut self, key: &str, origin: String, parsed: Result<(String, T), String>) -> Option<T> {
        match parsed {
            Ok((shown, value)) => {
                self.line(key, shown, origin);
                Some(value)
            }
            Err(what) => {
                self.mistake(key, what);
                None
            }
        }
    }

    fn know(&mut self, key: &str, is_table: bool) {
        self.reader.known.push(Known { section: self.path.clone(), key: key.to_owned(), is_table });
    }

    fn line(&mut self, key: &str, value: String, origin: String) {
        self.reader.lines.push(Line { section: self.path.clone(), key: key.to_owned(), value, origin });
    }

    fn origin_of(&self, value: &Value) -> String {
        self.reader.merged.get_metadata(value.tag()).map_or_else(|| DEFAULT.to_owned(), |metadata| metadata.name.clone().into_owned())
    }
}

pub(super) fn join(section: &str, key: &str) -> String {
    if section.is_empty() { report::key(key) } else { format!("{section}.{}", report::key(key)) }
}

fn text(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| format!("is {}; put it in quotes, with its unit if it has one", kind(value)))
}

/// A list, or a text that is separated by commas: an environment variable has nothing else. An empty text is one empty item,
/// which no list takes: a variable that a script forgot to fill must not empty `access.networks` and let everybody in.
fn items(value: &Value) -> Result<Vec<&str>, String> {
    match value {
        Value::String(_, text) if text.trim() == "[]" => Ok(Vec::new()),
        Value::String(_, text) => Ok(text.split(',').map(str::trim).collect()),
        Value::Array(_, values) => {
            let item = |value| Value::as_str(value).ok_or_else(|| format!("holds {}; put it in quotes", kind(value)));
            values.iter().map(item).collect()
        }
        other => Err(format!("is {} where a list belongs", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(..) | Value::Char(..) => "a text",
        Value::Bool(..) => "true or false",
        Value::Num(..) => "a number",
        Value::Empty(..) => "nothing",
        Value::Dict(..) => "a table",
        Value::Array(..) => "a list",
    }
}
