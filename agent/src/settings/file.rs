//! The configuration file: one YAML mapping from key to text, number, truth value or list of those.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::Value;

use super::Key;

/// A sane file is a tenth of it.
const LIMIT: u64 = 64 * 1024;

/// What a file says, and what is wrong with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) values: Vec<(&'static str, String)>,
    pub(super) problems: Vec<String>,
}

/// Reads the file; a missing one is empty when nobody asked for it.
pub(super) fn read(path: &Path, asked_for: bool) -> Content {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LIMIT + 1).read_to_string(&mut text));
    let problem = match read {
        Ok(_) if text.len() as u64 > LIMIT => format!("it is larger than {LIMIT} bytes"),
        Ok(_) => {
            let mut content = parse(&text);
            content.problems.iter_mut().for_each(|problem| *problem = format!("{}: {problem}", path.display()));
            return content;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !asked_for => return Content::default(),
        Err(error) => error.to_string(),
    };
    Content {
        problems: vec![format!("could not read the configuration file {}: {problem}", path.display())],
        ..Content::default()
    }
}

/// What this text says.
pub(super) fn parse(text: &str) -> Content {
    let mut content = Content::default();
    let mapping = match serde_saphyr::from_str::<Option<BTreeMap<String, Value>>>(text) {
        Ok(mapping) => mapping.unwrap_or_default(),
        Err(error) => {
            let first = error.to_string().lines().next().unwrap_or_default().to_owned();
            content.problems.push(format!("not a YAML mapping of keys to values: {first}"));
            return content;
        }
    };
    for (name, value) in mapping {
        match (Key::named(&name).and_then(Key::file_key), as_text(&value)) {
            (None, _) => content.problems.push(format!("unknown key {name:?}: `miglet config` lists the known ones")),
            (Some(_), Ok(None)) => {}
            (Some(key), Ok(Some(text))) => content.values.push((key, text)),
            (Some(key), Err(problem)) => content.problems.push(format!("{key}: {problem}")),
        }
    }
    content
}

/// As it would be written in an environment variable; a list is separated by spaces.
fn as_text(value: &Value) -> Result<Option<String>, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Bool(truth) => Ok(Some(truth.to_string())),
        // 1.10 would be read as 1.1.
        Value::Number(number) if number.is_f64() => Err("put a value that looks like a decimal number in quotes"),
        Value::Number(number) => Ok(Some(number.to_string())),
        Value::Array(items) => {
            let items = items.iter().map(as_text).collect::<Result<Vec<_>, _>>()?;
            Ok(Some(items.into_iter().flatten().collect::<Vec<_>>().join(" ")))
        }
        Value::Object(_) => Err("must be a text, a number or a list"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_gives_texts_numbers_and_lists() {
        let content = parse("# ours\nendpoint: https://gateway:8443\nheartbeat-seconds: 20\naudience: [a, b]\nca:\n");
        assert_eq!(content.problems, Vec::<String>::new());
        let value = |name| content.values.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str());
        assert_eq!(value("endpoint"), Some("https://gateway:8443"));
        assert_eq!((value("heartbeat-seconds"), value("audience"), value("ca")), (Some("20"), Some("a b"), None));
        assert_eq!(parse(""), Content::default());
    }

    #[test]
    fn every_unknown_key_and_every_odd_value_is_told() {
        let told = parse("endpiont: x\nmachine: {a: b}\nconfig: /elsewhere\naudience: 1.10\n").problems.join("\n");
        for wanted in ["\"endpiont\"", "machine: must be", "\"config\"", "audience: put"] {
            assert!(told.contains(wanted), "{wanted} in {told}");
        }
    }

    #[test]
    fn what_is_no_mapping_is_told_and_a_key_given_twice_too() {
        for text in ["- a list", "just text", "a: b: c", "audience: one\naudience: two\n", "\u{0}"] {
            assert_eq!(parse(text).problems.len(), 1, "{text:?}: {:?}", parse(text));
        }
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let missing = Path::new("/nonexistent/config.yaml");
        assert_eq!(read(missing, false), Content::default());
        assert!(read(missing, true).problems.join("").contains("/nonexistent/config.yaml: No such file"));
    }

    #[test]
    fn an_endless_file_is_refused() {
        assert!(read(Path::new("/dev/zero"), true).problems.join("").contains("larger than"));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            parse(&text);
        }

        #[test]
        fn whatever_is_accepted_has_a_known_name(name in "[a-z-]{1,12}", value in "[ -~]{0,20}") {
            for (key, _) in parse(&format!("{name}: {value}")).values {
                prop_assert!(Key::named(key).is_some_and(|known| known.file_key() == Some(key)));
            }
        }
    }
}
