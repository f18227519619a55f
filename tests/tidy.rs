//! The rules of this tree that no compiler checks: floors, determinism of the core, file length, unsafe code.
//!
//! Each rule is a function from one file's text to complaints; `each_rule_bites` shows every rule a small
//! made-up source that breaks it. The rules read text, not types: what they cannot see (a map behind a type
//! alias, say) is left to review.

use std::fs;
use std::path::{Path, PathBuf};
use tandem::config::TABLE;

const MAX_LINES: usize = 600;

/// Modules by floor. Each may use those on lower floors; two on one floor do not know each other.
const FLOORS: [(&str, u32); 10] = [
    ("types", 1),
    ("wire", 2),
    ("config", 2),
    ("proto", 3),
    ("app", 3),
    ("engine", 4),
    ("sim", 5),
    ("io", 5),
    ("cli", 6),
    ("main", 7),
];

/// The one use within a floor: settings hold keys and know what makes one.
const WITHIN_A_FLOOR: [(&str, &str); 1] = [("config", "wire")];

/// Modules that must compute the same everywhere: same inputs, same bytes out.
const CORE: [&str; 5] = ["types", "wire", "proto", "app", "engine"];

/// What the core must not name, as paths: clocks, environment, randomness, sockets, threads, files.
const BANNED_PATHS: [&str; 21] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::env",
    "std::thread",
    "std::process",
    "std::fs",
    "std::os",
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::net::TcpListener",
    "std::collections::HashMap",
    "std::collections::HashSet",
    "std::collections::hash_map",
    "std::hash::RandomState",
    "rand",
    "getrandom",
    "ring::rand",
    "mio",
    "socket2",
    "libc",
    "crossbeam",
];

/// The same as last parts of longer paths: `time::Instant` after `use std::time`.
const BANNED_CALLS: [&str; 6] =
    ["Instant::now", "SystemTime::now", "env::var", "env::vars", "thread::spawn", "thread::sleep"];

/// Ways to see a hash map's order.
const UNORDERED: [&str; 10] = [
    "iter",
    "iter_mut",
    "values",
    "values_mut",
    "keys",
    "drain",
    "into_iter",
    "into_values",
    "into_keys",
    "extract_if",
];

struct Source {
    /// Relative to the project, with slashes.
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The modules a file of `src` is in: `src/wire/seal.rs` is [wire, seal].
    fn modules(&self) -> Option<Vec<&str>> {
        let inside = self.path.strip_prefix("src/")?.strip_suffix(".rs")?;
        let inside = inside.strip_suffix("/mod").unwrap_or(inside);
        Some(inside.split('/').collect())
    }

    fn module(&self) -> Option<&str> {
        self.modules().map(|modules| modules[0]).filter(|module| *module != "lib")
    }

    fn in_core(&self) -> bool {
        self.module().is_some_and(|module| CORE.contains(&module))
    }
}

/// A word or a sign of Rust code and its line, counted from 1. `::` is one sign.
#[derive(Clone, PartialEq, Debug)]
struct Token {
    text: String,
    line: usize,
}

/// The code's tokens, without comments, strings and characters.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut tokens, mut line, mut i) = (Vec::new(), 1, 0);
    while i < chars.len() {
        let start = i;
        let first_line = line;
        let mut code = true;
        if at(i) == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
            code = false;
        } else if at(i) == '/' && at(i + 1) == '*' {
            i = (i + 2..chars.len())
                .find(|j| at(*j) == '*' && at(j + 1) == '/')
                .map_or(chars.len(), |j| j + 2);
            code = false;
        } else if let Some(end) = string_end(&chars, i) {
            i = end;
            code = false;
        } else if is_word(at(i)) {
            while is_word(at(i)) {
                i += 1;
            }
        } else {
            i += if at(i) == ':' && at(i + 1) == ':' { 2 } else { 1 };
        }
        let text: String = chars[start..i].iter().collect();
        line += text.matches('\n').count();
        if code && !text.trim().is_empty() {
            tokens.push(Token { text, line: first_line });
        }
    }
    tokens
}

/// Where the string or character that begins at `i` ends; none if none begins there.
fn string_end(chars: &[char], i: usize) -> Option<usize> {
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let after_word = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
    let prefix = if !after_word && "bc".contains(at(i)) && "r\"'".contains(at(i + 1)) { 1 } else { 0 };
    let mut j = i + prefix;
    if at(j) == 'r' && !after_word {
        let hashes = (j + 1..).take_while(|k| at(*k) == '#').count();
        if at(j + 1 + hashes) != '"' {
            return None;
        }
        let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
        let from = j + 2 + hashes;
        let end = (from..chars.len()).find(|k| chars[*k..].starts_with(&close));
        return Some(end.map_or(chars.len(), |k| k + close.len()));
    }
    let quote = at(j);
    // A lifetime has no closing quote right after its first character.
    if quote == '\'' && at(j + 1) != '\\' && at(j + 2) != '\'' || quote != '\'' && quote != '"' {
        return None;
    }
    j += 1;
    while j < chars.len() && at(j) != quote {
        j += if at(j) == '\\' { 2 } else { 1 };
    }
    Some((j + 1).min(chars.len()))
}

/// Every path in the code, `use` trees written out, with its line.
fn paths(tokens: &[Token]) -> Vec<(String, usize)> {
    let mut paths = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        if tokens[i].text == "use" {
            i = use_tree(tokens, i + 1, "", &mut paths);
        } else if is_name(&tokens[i]) {
            let line = tokens[i].line;
            let mut path = tokens[i].text.clone();
            while i + 2 < tokens.len() && tokens[i + 1].text == "::" && is_name(&tokens[i + 2]) {
                path += "::";
                path += &tokens[i + 2].text;
                i += 2;
            }
            paths.push((path, line));
        }
        i += 1;
    }
    paths
}

fn is_name(token: &Token) -> bool {
    token.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads one `use` tree from `i` on; returns where it ended (at `,`, `}` or `;`).
fn use_tree(tokens: &[Token], mut i: usize, prefix: &str, paths: &mut Vec<(String, usize)>) -> usize {
    let mut path = String::from(prefix);
    let mut line = 0;
    while let Some(token) = tokens.get(i) {
        match token.text.as_str() {
            "{" => {
                loop {
                    i = use_tree(tokens, i + 1, &path, paths);
                    if tokens.get(i).is_none_or(|t| t.text != ",") {
                        break;
                    }
                }
                return i + 1;
            }
            "," | "}" | ";" => break,
            "as" => i += 1,
            text => {
                path += text;
                line = token.line;
            }
        }
        i += 1;
    }
    if line > 0 {
        paths.push((path, line));
    }
    i
}

fn starts_with_path(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

type Complaints = Vec<String>;
type Rule = (&'static str, fn(&Source) -> Complaints);

fn floors(source: &Source) -> Complaints {
    let (Some(modules), Some(module)) = (source.modules(), source.module()) else { return Vec::new() };
    let floor_of = |name: &str| FLOORS.iter().find(|(known, _)| *known == name).map(|(_, floor)| *floor);
    let Some(floor) = floor_of(module) else {
        return vec![format!("{}: module {module} is on no floor: add it to FLOORS", source.path)];
    };
    let mut complaints = Vec::new();
    for (path, line) in paths(&tokens(&source.text)) {
        let path = path.trim_start_matches('$');
        let parts: Vec<&str> = path.split("::").collect();
        let climbs = parts.iter().filter(|part| **part == "super").count();
        // One more step is a test module's, inside the file.
        if climbs > modules.len() {
            complaints.push(format!("{}:{line}: {path} climbs out of its floor: say crate::", source.path));
        }
        let used = match parts.as_slice() {
            ["crate" | "tandem", used, ..] => *used,
            parts if climbs >= modules.len() => parts.get(climbs).copied().unwrap_or_default(),
            _ => continue,
        };
        let Some(used_floor) = floor_of(used) else { continue };
        let allowed = used == module || used_floor < floor || WITHIN_A_FLOOR.contains(&(module, used));
        if !allowed {
            complaints.push(format!(
                "{}:{line}: {module} (floor {floor}) uses {used} (floor {used_floor})",
                source.path
            ));
        }
    }
    complaints
}

/// The part of a file before its test module: tests may read files and count by hash maps.
fn before_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod ").map_or(text, |end| &text[..end])
}

fn core_is_deterministic(source: &Source) -> Complaints {
    if !source.in_core() || source.path.ends_with("tests.rs") || source.path.contains("/tests/") {
        return Vec::new();
    }
    let tokens = tokens(before_tests(&source.text));
    let mut complaints = Vec::new();
    for (path, line) in paths(&tokens) {
        let banned = BANNED_PATHS.iter().any(|banned| starts_with_path(&path, banned));
        if banned || BANNED_CALLS.iter().any(|call| path == *call || path.ends_with(&format!("::{call}"))) {
            complaints.push(format!("{}:{line}: the core must not know {path}", source.path));
        }
    }
    complaints.extend(hash_order(source, &tokens));
    complaints
}

/// Iteration over what this file declares as a hash map or set: `name: HashMap<..>`, `name: Option<HashMap..`,
/// `let name = HashMap::..`. `// unordered: why` on that line
/// or beside it excuses it.
fn hash_order(source: &Source, tokens: &[Token]) -> Complaints {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let is_map = |word: &str| ["HashMap", "HashSet", "HashTable"].contains(&word);
    let mut maps: Vec<&str> = Vec::new();
    for i in (0..tokens.len()).filter(|i| is_name(&tokens[*i]) && [":", "="].contains(&text(i + 1))) {
        let declared =
            (i + 2..).map(text).take_while(|t| !["", ",", ";", "=", ")", "{", "}", "("].contains(t));
        if declared.into_iter().any(is_map) {
            maps.push(text(i));
        }
    }
    let mut complaints = Vec::new();
    for (i, Token { line, .. }) in tokens.iter().enumerate() {
        let seen = text(i + 1) == "." && UNORDERED.contains(&text(i + 2)) && text(i + 3) == "(";
        let before = (0..i).rev().find(|j| !["&", "mut", "self", "."].contains(&text(*j))).map_or("", text);
        let looped = before == "in" && text(i + 1) == "{";
        let mut nearby = source.text.lines().skip(line.saturating_sub(2)).take(3);
        if maps.contains(&text(i)) && (seen || looped) && !nearby.any(|line| line.contains("// unordered: "))
        {
            let (path, name) = (&source.path, text(i));
            complaints
                .push(format!("{path}:{line}: the order of the hash map {name} is not the same everywhere"));
        }
    }
    complaints
}

fn length(source: &Source) -> Complaints {
    let lines = source.text.lines().count();
    if source.is_rust() && lines > MAX_LINES {
        return vec![format!("{}: {lines} lines, more than {MAX_LINES}: it holds two stories", source.path)];
    }
    Vec::new()
}

fn words(source: &Source) -> Complaints {
    if !source.is_rust() {
        return Vec::new();
    }
    let (path, tokens) = (&source.path, tokens(&source.text));
    let mut complaints = Vec::new();
    for (i, token) in tokens.iter().enumerate() {
        let macro_call = tokens.get(i + 1).is_some_and(|next| next.text == "!");
        let line = token.line;
        match token.text.as_str() {
            "unsafe" if !path.starts_with("src/io/sys") => {
                complaints.push(format!("{path}:{line}: unsafe outside src/io/sys*.rs"));
            }
            "dbg" | "todo" | "unimplemented" if macro_call => {
                complaints.push(format!("{path}:{line}: {}! is left", token.text));
            }
            _ => {}
        }
    }
    complaints
}

fn form(source: &Source) -> Complaints {
    let path = &source.path;
    let mut complaints = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        let place = format!("{path}:{}", i + 1);
        if line.trim_end() != line {
            complaints.push(format!("{place}: white space at the end"));
        }
        if [concat!("TO", "DO"), concat!("FIX", "ME")].iter().any(|mark| line.contains(mark)) {
            complaints.push(format!("{place}: unfinished work is not written into the tree"));
        }
    }
    if !source.text.ends_with('\n') || source.text.ends_with("\n\n") {
        complaints.push(format!("{path}: does not end in one line end"));
    }
    if source.is_rust() && !source.text.starts_with("//! ") {
        complaints.push(format!("{path}: does not begin by saying what it is (//!)"));
    }
    complaints
}

/// Pages and scripts must not speak of settings that do not exist.
fn known_settings(source: &Source) -> Complaints {
    if source.is_rust() {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    for (i, line) in source.text.lines().enumerate() {
        for (start, _) in line.match_indices("TANDEM_") {
            let name = &line[start..];
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(name.len());
            let name = &name[..end];
            let family = ["TANDEM_", "TANDEM_SIM_", "TANDEM_TEST_"];
            let other = family.contains(&name) || family[1..].iter().any(|prefix| name.starts_with(prefix));
            if !other && !TABLE.iter().any(|setting| setting.variable() == name) {
                complaints.push(format!("{}:{}: {name} is no setting", source.path, i + 1));
            }
        }
    }
    complaints
}

const RULES: [Rule; 6] = [
    ("floors", floors),
    ("core_is_deterministic", core_is_deterministic),
    ("length", length),
    ("words", words),
    ("form", form),
    ("known_settings", known_settings),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every page, script, settings and source file of the project.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> =
        ["src", "tests", "bench", "scripts", ".ci"].iter().map(|d| root().join(d)).collect();
    let top = fs::read_dir(root()).expect("the project's folder can be read");
    let mut files: Vec<PathBuf> =
        top.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { files.push(path) }
        }
    }
    for file in files {
        let path = file.strip_prefix(root()).unwrap().to_str().expect("plain file names").to_string();
        let ours = [".rs", ".md", ".toml", ".sh"].iter().any(|end| path.ends_with(end));
        let script =
            ["scripts/", ".ci/"].iter().any(|folder| path.starts_with(folder)) && !path.contains('.');
        if ours || script || path == ".ci/run" {
            found.push(Source { path, text: fs::read_to_string(&file).expect("text") });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

#[test]
fn the_tree_is_tidy() {
    let sources = sources();
    let seen = |path: &str| sources.iter().any(|source| source.path == path);
    for path in ["src/main.rs", "src/wire/seal.rs", "README.md", "Cargo.toml", "scripts/test", ".ci/run"] {
        assert!(seen(path), "{path} was not looked at");
    }
    let complaints: Vec<String> =
        sources.iter().flat_map(|source| RULES.iter().flat_map(|(_, rule)| rule(source))).collect();
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// README's table of settings is the table the program holds.
#[test]
fn the_readme_lists_every_setting() {
    let mut table = String::from("| variable | default | accepts | meaning |\n|---|---|---|---|\n");
    for setting in TABLE {
        let default = if setting.default.is_empty() { "none" } else { setting.default };
        let (variable, accepts, meaning) = (setting.variable(), setting.accepts, setting.meaning);
        table += &format!("| `{variable}` | `{default}` | {accepts} | {meaning} |\n");
    }
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains(&table), "README.md must hold this table:\n{table}");
}

#[test]
fn each_rule_bites() {
    let head = "//! A made-up file.\n";
    let long = "//! x\n".repeat(MAX_LINES + 1);
    let breaking: &[(&str, &str, &str)] = &[
        ("floors", "src/wire/x.rs", "use crate::engine::Shard;"),
        ("floors", "src/proto/x.rs", "use crate::app::CallApp;"),
        ("floors", "src/app/x.rs", "fn f() { let x = crate::proto::y(); }"),
        ("floors", "src/sim/x.rs", "use crate::{types::Nanos, io::shell};"),
        ("floors", "src/io/x.rs", "use crate::sim::net;"),
        ("floors", "src/wire/x.rs", "use crate::config::Settings;"),
        ("floors", "src/wire/x.rs", "use super::super::engine::Shard;"),
        ("floors", "src/new/x.rs", ""),
        ("core_is_deterministic", "src/proto/x.rs", "use std::time::{Duration, Instant};"),
        ("core_is_deterministic", "src/engine/x.rs", "use std::time; fn f() { time::Instant::now(); }"),
        ("core_is_deterministic", "src/app/x.rs", "fn f() { std::env::var(\"X\"); }"),
        ("core_is_deterministic", "src/app/x.rs", "use std::{fmt, thread};"),
        ("core_is_deterministic", "src/wire/x.rs", "use std::net::{IpAddr, UdpSocket};"),
        ("core_is_deterministic", "src/types.rs", "use std::collections::HashMap;"),
        ("core_is_deterministic", "src/app/x.rs", "fn f() { rand::random() }"),
        (
            "core_is_deterministic",
            "src/app/x.rs",
            "struct S { m: HashMap<u8, u8> } fn f() { self.m.values() }",
        ),
        (
            "core_is_deterministic",
            "src/app/x.rs",
            "struct S { m: hashbrown::HashSet<u8> } fn f() { for x in &self.m {} }",
        ),
        ("core_is_deterministic", "src/app/x.rs", "fn f() { let m = HashMap::new(); m.drain(); }"),
        ("length", "src/app/x.rs", &long),
        ("words", "src/io/x.rs", "unsafe fn f() {}"),
        ("words", "tests/x.rs", "fn f() { dbg!(1); }"),
        ("words", "tests/x.rs", concat!("fn f() { to", "do!() }")),
        ("form", "src/app/x.rs", "fn f() {} \n"),
        ("form", "scripts/x", concat!("# TO", "DO later\n")),
        ("form", "src/app/x.rs", "fn f() {}"),
        ("known_settings", "README.md", "Set TANDEM_SLOT.\n"),
    ];
    for (name, path, text) in breaking {
        let (_, rule) = RULES.iter().find(|(rule, _)| rule == name).expect("a rule");
        let source = Source::new(path, &format!("{head}{text}"));
        assert!(!rule(&source).is_empty(), "{name} lets this pass in {path}: {text}");
    }
    for (name, _) in RULES {
        assert!(breaking.iter().any(|(tried, ..)| *tried == name), "{name} was never tried");
    }
}

#[test]
fn each_rule_lets_clean_code_pass() {
    let clean: &[(&str, &str)] = &[
        ("src/engine/x.rs", "use crate::{app::CallApp, proto::Log, types::Nanos};\n"),
        ("src/config/x.rs", "use crate::wire::seal::ClusterKey;\nuse std::env;\n"),
        (
            "src/wire/a/b.rs",
            "use super::super::x;\n#[cfg(test)]\nmod tests {\n    use super::super::super::x;\n}\n",
        ),
        (
            "src/app/x.rs",
            "// Instant::now, unsafe\nconst A: &str = \"std::env unsafe \\\" todo!\"; // rand\n",
        ),
        ("src/app/x.rs", "fn f<'a>(x: &'a str) -> char { r#\"unsafe \" \"#; b'\"'; '\\'' }\n"),
        (
            "src/app/x.rs",
            "struct S { m: HashMap<u8, u8>, v: Vec<u8> }\nfn f() { self.m.get(); self.v.iter(); }\n",
        ),
        ("src/app/x.rs", "fn f(m: HashMap<u8, u8>) {\n    m.iter().count(); // unordered: counted\n}\n"),
        ("src/app/x.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use std::collections::HashMap;\n}\n"),
        ("src/io/sys_mmsg.rs", "unsafe fn f() {}\n"),
        ("README.md", "Set TANDEM_SLOTS, TANDEM_SIM_SEED.\n"),
    ];
    for (path, text) in clean {
        let head = if path.ends_with(".rs") { "//! A made-up file.\n" } else { "" };
        let source = Source::new(path, &format!("{head}{text}"));
        let complaints: Vec<String> = RULES.iter().flat_map(|(_, rule)| rule(&source)).collect();
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}
