//! Lists inside a value: items between commas, parameters between semicolons.

use memchr::memchr3;

use super::cursor::{after_quoted, cut};

/// The index of the first separator outside of quotes and (where they count) angle brackets.
fn find_separator(bytes: &[u8], separator: u8, brackets: bool) -> Option<usize> {
    let mut at = 0;
    let mut inside = false;
    loop {
        at += if inside {
            memchr::memchr(b'>', &bytes[at..])?
        } else if brackets {
            let quote_or_open = memchr3(separator, b'"', b'<', &bytes[at..])?;
            quote_or_open
        } else {
            memchr::memchr2(separator, b'"', &bytes[at..])?
        };
        match bytes[at] {
            byte if !inside && byte == separator => return Some(at),
            b'"' => {
                at = bytes.len() - after_quoted(&bytes[at..])?.len();
                continue;
            }
            byte => inside = byte == b'<',
        }
        at += 1;
    }
}

/// The items of a comma-separated value, without the blanks around them. Commas in quotes and angle
/// brackets do not count; empty items are passed over.
#[derive(Copy, Clone, Debug)]
pub struct Values<'a> {
    rest: &'a [u8],
}

impl<'a> Values<'a> {
    /// The items of a value.
    pub fn of(value: &'a [u8]) -> Values<'a> {
        Values { rest: value }
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let end = find_separator(self.rest, b',', true).unwrap_or(self.rest.len());
            let item = self.rest[..end].trim_ascii();
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !item.is_empty() {
                return Some(item);
            }
        }
        None
    }
}

/// One parameter.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Param<'a> {
    /// As written; names are equal in any case.
    pub name: &'a [u8],
    /// What follows the `=`, quotes included; `None` without one.
    pub value: Option<&'a [u8]>,
}

impl<'a> Param<'a> {
    /// The value without the quotes around it, if there are any.
    pub fn unquoted(&self) -> Option<&'a [u8]> {
        let value = self.value?;
        Some(value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).unwrap_or(value))
    }
}

/// Parameters: `;name=value;name`, blanks anywhere. Empty ones are passed over.
#[derive(Copy, Clone, Debug, Default)]
pub struct Params<'a> {
    rest: &'a [u8],
}

impl<'a> Params<'a> {
    /// The parameters of a text that starts with the first `;`, or is empty.
    pub fn of(text: &'a [u8]) -> Params<'a> {
        Params { rest: text }
    }

    /// The first parameter of that name.
    pub fn get(&self, name: &[u8]) -> Option<Param<'a>> {
        { *self }.find(|param| param.name.eq_ignore_ascii_case(name))
    }

    /// Its value; `None` if it is not there or has none.
    pub fn value(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.get(name)?.value
    }

    /// Whether there is a parameter of that name.
    pub fn has(&self, name: &[u8]) -> bool {
        self.get(name).is_some()
    }
}

impl<'a> Iterator for Params<'a> {
    type Item = Param<'a>;

    fn next(&mut self) -> Option<Param<'a>> {
        while !self.rest.is_empty() {
            let end = find_separator(self.rest, b';', false).unwrap_or(self.rest.len());
            let text = self.rest[..end].trim_ascii();
            self.rest = self.rest.get(end + 1..).unwrap_or_default();
            if !text.is_empty() {
                let (name, value) = cut(text, b'=');
                return Some(Param { name: name.trim_ascii(), value: value.map(<[u8]>::trim_ascii) });
            }
        }
        None
    }
}
