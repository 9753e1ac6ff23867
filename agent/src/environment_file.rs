//! `/etc/miglet/environment`: what the units give the agent and its runner, a proxy above all. A person who asks on the same
//! machine (`miglet doctor`, `config`, `install`, ...) wants the answer that holds for them, so such a command is started
//! again with it. Not set in the running process: what reads the environment may have done so already.

use std::{ffi::OsString, io, os::unix::process::CommandExt, process::Command};

/// Where the units look.
pub const ENVIRONMENT_FILE: &str = "/etc/miglet/environment";

/// Starts this very command again with what the file says, if this environment lacks any of it; then it does not return.
///
/// # Errors
/// When the file is there and cannot be read, or the command not be started again.
pub fn adopt() -> io::Result<()> {
    let text = match std::fs::read_to_string(ENVIRONMENT_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    let lacking = lacking(&text, |name| std::env::var_os(name).is_some());
    if lacking.is_empty() {
        return Ok(());
    }
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("miglet"));
    Err(Command::new(std::env::current_exe()?).arg0(name).args(arguments).envs(lacking).exec())
}

/// The variables of the file that are not there yet: what somebody typed wins.
fn lacking(text: &str, has: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    text.lines().filter_map(variable).filter(|(name, _)| !has(name)).collect()
}

/// `NAME=value` as systemd reads it: comments begin with # or ;, quotes around the value are none of it.
fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.trim().split_once('=')?;
    let (name, value) = (name.trim_end(), value.trim());
    let mut letters = name.bytes();
    let begins = letters.next().is_some_and(|letter| letter.is_ascii_alphabetic() || letter == b'_');
    let goes_on = letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
    let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    (begins && goes_on && !value.contains('\0')).then(|| (name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_adds_what_is_not_there() {
        let text = "# A proxy\n; too\n\nHTTPS_PROXY=http://proxy:3128\n  NO_PROXY = \"a, b\" \nHTTP_PROXY=\nLANG=C\n1X=2\nA B=3\nno\n";
        let found = lacking(text, |name| name == "LANG");
        let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(found, [("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", "a, b"), ("HTTP_PROXY", "")]);
    }
}
