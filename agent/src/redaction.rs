//! Takes secrets out of text that leaves the machine. Errs on the side of too much: a hash that is missing from a log costs
//! a minute, a token that is in it costs an organisation.
//!
//! No regular expressions: their engine would be a fifth of this binary.

/// What stands in place of a secret.
const HIDDEN: &str = "[redacted]";
/// How the tokens of GitHub, Google and others begin; eyJ is a JWT and any other JSON in base64.
const PREFIXES: [&str; 10] = ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "eyJ", "ya29.", "AKIA", "v1."];
/// Names after which a value is hidden, whatever it looks like.
const NAMES: [&str; 12] = [
    "token",
    "secret",
    "password",
    "passwd",
    "authorization",
    "bearer",
    "jitconfig",
    "jit_config",
    "credential",
    "signature",
    "privatekey",
    "private_key",
];
/// Shorter words are words.
const LONG: usize = 24;

/// The text without what is, or may be, secret.
#[must_use]
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_pem = false;
    for line in text.split_inclusive('\n') {
        let begins = line.contains("-----BEGIN ");
        if begins && !in_pem {
            out.push_str(HIDDEN);
            out.push('\n');
        }
        in_pem |= begins;
        if !in_pem {
            redact_line(line, &mut out);
        }
        in_pem &= !line.contains("-----END ");
    }
    out
}

fn redact_line(line: &str, out: &mut String) {
    let mut named = false;
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let length = |inside: fn(char) -> bool| rest.find(|c| !inside(c)).unwrap_or(rest.len());
        let is_word = word(first);
        let (piece, tail) = rest.split_at(length(if is_word { word } else { between }));
        rest = tail;
        if !is_word {
            // A name and its value may be apart by quotes, colons, equals signs and spaces; a comma ends the pair.
            named &= !piece.contains([',', ';', '\n', '&', '}']);
            out.push_str(piece);
            continue;
        }
        let names = is_name(piece);
        let hide = (named && !names) || is_secret(piece);
        out.push_str(if hide { HIDDEN } else { piece });
        // `Authorization: Bearer x`: the scheme is a name as well.
        named = names || (named && scheme(piece));
    }
}

fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '_' | '-' | '.' | '~' | '%')
}

fn between(c: char) -> bool {
    !word(c)
}

fn scheme(piece: &str) -> bool {
    ["basic", "bearer", "remoteauth", "token"].iter().any(|known| piece.eq_ignore_ascii_case(known))
}

fn is_name(piece: &str) -> bool {
    let lower = piece.to_ascii_lowercase();
    NAMES.iter().any(|name| lower.ends_with(name))
}

fn is_secret(piece: &str) -> bool {
    PREFIXES.iter().any(|prefix| piece.contains(prefix) && piece.len() >= prefix.len() + 12)
        || piece.split(['/', '-', '.', '%']).any(is_random)
}

/// Long, and of all kinds of characters: nobody writes such words.
fn is_random(part: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| part.bytes().any(|byte| kind(&byte));
    let mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
    let hexadecimal = part.bytes().all(|byte| byte.is_ascii_hexdigit()) && part.len() >= 40;
    part.len() >= LONG && (mixed || hexadecimal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn secrets_of_every_kind_are_taken_out_and_the_rest_stays() {
        let cases = [
            ("jit eyJhIjoiYiIsImMiOiJkIn0= end", "jit [redacted]= end"),
            ("ghs_0123456789abcdefghij", "[redacted]"),
            ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
            (
                r#"{"encoded_jit_config":"x","token": "short"}"#,
                r#"{"encoded_jit_config":"[redacted]","token": "[redacted]"}"#,
            ),
            ("password=hunter2&user=me", "password=[redacted]&user=me"),
            ("ACTIONS_RUNNER_INPUT_JITCONFIG=x", "ACTIONS_RUNNER_INPUT_JITCONFIG=[redacted]"),
            ("/opt/actions-runner/_work/_temp/run 2026-11-21", "/opt/actions-runner/_work/_temp/run 2026-11-21"),
            ("session linux-7f3kq2-bcdfghjk-1 opened", "session linux-7f3kq2-bcdfghjk-1 opened"),
            ("a\n-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\nb", "a\n[redacted]\nb"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected);
        }
    }

    proptest! {
        #[test]
        fn a_token_never_survives_whatever_stands_around_it(
            before in "[ -~\n]{0,20}", token in "gh[pousr]_[A-Za-z0-9]{36}", after in "[ -~\n]{0,20}"
        ) {
            let shown = redact(&format!("{before}{token}{after}"));
            prop_assert!(!shown.contains(&token), "{}", shown);
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            prop_assert!(!redact(&text).contains("-----BEGIN "));
        }
    }
}
