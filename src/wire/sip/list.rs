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
            memchr3(separator, b'"', b'<', &bytes[at..])?
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

#[cfg(test)]
mod tests {
    use super::*;

    fn items(value: &str) -> Vec<String> {
        Values::of(value.as_bytes()).map(|item| String::from_utf8_lossy(item).into_owned()).collect()
    }

    #[test]
    fn commas_in_quotes_and_brackets_do_not_count() {
        assert_eq!(items("a, b ,c"), ["a", "b", "c"]);
        assert_eq!(items(" ,, a,\r\n b,, "), ["a", "b"]);
        assert_eq!(
            items(r#""x, \", <y" <sip:a,b@c>;d, <sip:e,f>"#),
            [r#""x, \", <y" <sip:a,b@c>;d"#, "<sip:e,f>"]
        );
        assert_eq!(items(r#"a, "never ends, b"#), ["a", r#""never ends, b"#]);
        assert_eq!(items("a, <never ends, b"), ["a", "<never ends, b"]);
        assert_eq!(items(r#"<a"b,c>, d"e""#), [r#"<a"b,c>"#, r#"d"e""#]);
        assert_eq!(items(r#""\"#), [r#""\"#]);
        assert!(items(" , ").is_empty());
    }

    #[test]
    fn parameters_with_and_without_values() {
        let params = Params::of(b" ; a = 1 ;;B;c=\"x;\\\"y\"; d = ;e=\"never ends;f=1");
        let all: Vec<_> = params.map(|p| (p.name, p.value)).collect();
        assert_eq!(
            all,
            [
                (&b"a"[..], Some(&b"1"[..])),
                (b"B", None),
                (b"c", Some(b"\"x;\\\"y\"")),
                (b"d", Some(b"")),
                (b"e", Some(b"\"never ends;f=1")),
            ]
        );
        assert_eq!(params.value(b"A"), Some(&b"1"[..]));
        assert!(params.has(b"b") && params.value(b"b").is_none() && !params.has(b"f"));
        assert_eq!(params.get(b"c").and_then(|p| p.unquoted()), Some(&b"x;\\\"y"[..]));
        assert_eq!(params.get(b"a").and_then(|p| p.unquoted()), Some(&b"1"[..]));
    }
}
