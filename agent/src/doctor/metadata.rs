//! The metadata server, and the clock against its Date header.

use std::time::Duration;

use super::Finding;
use crate::{
    clock,
    error::in_full,
    metadata::Metadata,
    settings::{Collected, Settings},
};

/// GitHub refuses a runner whose clock is further off.
const SKEW_LIMIT: Duration = Duration::from_secs(300);
/// No working time service leaves so much.
const SKEW_ODD: Duration = Duration::from_secs(30);

/// Asks for the attributes, which completes the settings, and for the time.
pub(super) async fn examine(collected: &mut Collected) -> Vec<Finding> {
    const ADVICE: &str = "run this on a Compute Engine instance; allow tcp 80 to 169.254.169.254 and do not proxy it";
    if let Err(error) = collected.ask_metadata().await {
        return vec![Finding::failure("metadata", in_full(&error), ADVICE)];
    }
    let host = collected.text("metadata-host").unwrap_or_default();
    let mut findings = vec![Finding::ok("metadata", format!("{host} gives the instance's attributes"))];
    let warnings = collected.warnings().iter();
    findings.extend(warnings.map(|warning| {
        Finding::warning("metadata", warning.as_str(), "correct the instance template, or install a newer agent")
    }));
    let date = Metadata::new(host).date().await;
    findings.push(match date {
        Ok(date) => skew(clock::unix_ms(), date.as_deref()),
        Err(error) => Finding::warning("clock", in_full(&error), "check the time by hand: `timedatectl`"),
    });
    findings
}

/// How far the clock is from a Date header.
fn skew(now_unix_ms: i64, date: Option<&str>) -> Finding {
    const ADVICE: &str =
        "start a time service (chrony with `server metadata.google.internal`): TLS and GitHub refuse a wrong clock";
    let Some(ahead) = clock::seconds_ahead(now_unix_ms, date) else {
        return Finding::warning("clock", "the metadata server tells no time", "check the time by hand: `timedatectl`");
    };
    let skew = Duration::from_secs(ahead.unsigned_abs());
    let found = format!("{} s from the metadata server's", skew.as_secs());
    match skew {
        _ if skew > SKEW_LIMIT => Finding::failure("clock", found, ADVICE),
        _ if skew > SKEW_ODD => Finding::warning("clock", found, ADVICE),
        _ => Finding::ok("clock", found),
    }
}

/// Whether the instance can prove who it is.
pub(super) async fn identity(settings: &Settings) -> Finding {
    let token = Metadata::new(settings.metadata_host.clone()).identity_token(&settings.audience).await;
    match token {
        Ok(_) => Finding::ok("identity", "the metadata server signs identity tokens"),
        Err(error) => Finding::failure(
            "identity",
            in_full(&error),
            "give the instance template a service account; it needs no rights",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off_in_either_direction() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let then: i64 = 784_111_777_000;
        for (off, verdict) in [
            (0, Verdict::Ok),
            (-20_000, Verdict::Ok),
            (60_000, Verdict::Warning),
            (-60_000, Verdict::Warning),
            (3_600_000, Verdict::Failure),
            (-3_600_000, Verdict::Failure),
        ] {
            assert_eq!(skew(then + off, Some(date)).verdict, verdict, "{off}");
        }
        for date in [None, Some("yesterday")] {
            assert_eq!(skew(then, date).verdict, Verdict::Warning);
        }
    }
}
