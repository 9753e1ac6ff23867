//! What an error of Google means: pure.
//!
//! Compute reports trouble in three places - the HTTP answer, an operation that is DONE with an error, an instance's last
//! attempt - and with three vocabularies. All end in one [`ErrorClass`].

use crate::compute::ErrorClass;

/// The longest text taken over from Google, in characters.
const LONGEST: usize = 300;

/// The class of an error of an operation or of an instance's last attempt.
pub(super) fn launch(code: &str, message: &str, status: Option<u16>) -> ErrorClass {
    if code.contains("POOL_EXHAUSTED") || code == "INSUFFICIENT_CAPACITY" || lacks_resources(message) {
        return ErrorClass::Capacity;
    }
    if is_rate_limit(code, message) {
        return ErrorClass::RateLimit;
    }
    if code.to_ascii_uppercase().contains("QUOTA") {
        return ErrorClass::Quota;
    }
    match code {
        "RESOURCE_ALREADY_EXISTS" | "ALREADY_EXISTS" | "alreadyExists" | "INSTANCE_ALREADY_EXISTS" => {
            ErrorClass::AlreadyExists
        }
        "RESOURCE_NOT_FOUND" | "NOT_FOUND" | "notFound" => ErrorClass::NotFound,
        "INTERNAL_ERROR"
        | "BACKEND_ERROR"
        | "backendError"
        | "UNAVAILABLE"
        | "RESOURCE_NOT_READY"
        | "resourceNotReady"
        | "RESOURCE_OPERATION_RATE_EXCEEDED" => ErrorClass::Transient,
        // A Spot machine that was preempted while it was made.
        "UNSUPPORTED_OPERATION" => ErrorClass::Capacity,
        "" => status.map_or(ErrorClass::Transient, |status| http(status, "", message)),
        _ => match status {
            Some(status @ (404 | 409 | 429 | 500..)) => http(status, code, message),
            _ => ErrorClass::Config,
        },
    }
}

/// The class of an HTTP answer. `reason` is Google's, from the body.
pub(super) fn http(status: u16, reason: &str, message: &str) -> ErrorClass {
    match status {
        403 | 429 if is_rate_limit(reason, message) || status == 429 => ErrorClass::RateLimit,
        _ if reason.to_ascii_lowercase().contains("quota") => ErrorClass::Quota,
        400 if reason == "resourceNotReady" => ErrorClass::Transient,
        404 => ErrorClass::NotFound,
        409 if reason == "alreadyExists" || reason.is_empty() || message.contains("already exists") => {
            ErrorClass::AlreadyExists
        }
        // In use by another operation: over soon.
        409 => ErrorClass::Transient,
        408 | 500.. => ErrorClass::Transient,
        _ => ErrorClass::Config,
    }
}

fn lacks_resources(message: &str) -> bool {
    message.contains("does not have enough resources available")
}

fn is_rate_limit(reason: &str, message: &str) -> bool {
    matches!(reason, "rateLimitExceeded" | "RATE_LIMIT_EXCEEDED" | "userRateLimitExceeded")
        || message.contains("per minute")
}

/// Text from outside for conditions and logs: one line, no control characters, at most 300 characters.
pub(super) fn cut(text: &str) -> String {
    let clean = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_launch_error_has_its_class() {
        use ErrorClass::*;
        let table = [
            ("ZONE_RESOURCE_POOL_EXHAUSTED", "", Capacity),
            ("RESOURCE_POOL_EXHAUSTED", "", Capacity),
            ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", "", Capacity),
            ("INSUFFICIENT_CAPACITY", "", Capacity),
            ("QUOTA_EXCEEDED", "Quota 'CPUS' exceeded.  Limit: 24.0 in region us-west1.", Quota),
            ("PERMISSIONS_ERROR", "", Config),
            ("IP_SPACE_EXHAUSTED", "", Config),
            ("CONDITION_NOT_MET", "Constraint constraints/compute.vmExternalIpAccess violated", Config),
            ("RESOURCE_ALREADY_EXISTS", "", AlreadyExists),
            ("INTERNAL_ERROR", "", Transient),
            ("", "", Transient),
        ];
        for (code, message, class) in table {
            assert_eq!(launch(code, message, None), class, "{code}");
        }
    }

    #[test]
    fn the_status_of_an_operation_decides_where_its_code_does_not() {
        assert_eq!(launch("CONDITION_NOT_MET", "", Some(412)), ErrorClass::Config);
        assert_eq!(launch("SOMETHING", "", Some(503)), ErrorClass::Transient);
        assert_eq!(launch("SOMETHING", "", Some(409)), ErrorClass::Transient);
        assert_eq!(launch("SOMETHING", "it already exists", Some(409)), ErrorClass::AlreadyExists);
    }

    #[test]
    fn a_403_is_a_rate_limit_only_when_google_says_so() {
        let minute = "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute'";
        assert_eq!(http(403, "rateLimitExceeded", minute), ErrorClass::RateLimit);
        assert_eq!(http(403, "RATE_LIMIT_EXCEEDED", ""), ErrorClass::RateLimit);
        assert_eq!(http(403, "quotaExceeded", ""), ErrorClass::Quota);
        assert_eq!(http(403, "forbidden", "Required 'compute.x' permission"), ErrorClass::Config);
    }

    #[test]
    fn other_http_answers_have_their_class() {
        let table = [
            (400, "invalid", ErrorClass::Config),
            (400, "resourceNotReady", ErrorClass::Transient),
            (401, "", ErrorClass::Config),
            (404, "notFound", ErrorClass::NotFound),
            (409, "alreadyExists", ErrorClass::AlreadyExists),
            (409, "resourceInUseByAnotherResource", ErrorClass::Transient),
            (412, "conditionNotMet", ErrorClass::Config),
            (429, "", ErrorClass::RateLimit),
            (503, "backendError", ErrorClass::Transient),
        ];
        for (status, reason, class) in table {
            assert_eq!(http(status, reason, ""), class, "{status} {reason}");
        }
    }
}
