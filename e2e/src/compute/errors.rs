//! Errors as Compute words them: the legacy body of an HTTP error, and the error inside a finished operation.

use serde_json::{Value, json};

/// An error answered at once, instead of an operation.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    pub(crate) status: u16,
    reason: &'static str,
    domain: &'static str,
    message: String,
    extra: Option<Value>,
}

impl ApiError {
    fn new(status: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, domain: "global", message: message.into(), extra: None }
    }

    pub(crate) fn not_found(resource: &str) -> Self {
        Self::new(404, "notFound", format!("The resource '{resource}' was not found"))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid", message)
    }

    pub(crate) fn exists(resource: &str) -> Self {
        Self::new(409, "alreadyExists", format!("The resource '{resource}' already exists"))
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self::new(412, "conditionNotMet", message)
    }

    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "forbidden", message)
    }

    pub(crate) fn unauthenticated() -> Self {
        let message = "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or \
                       other valid authentication credential.";
        let mut error = Self::new(401, "authError", message);
        error.extra = Some(json!({"status": "UNAUTHENTICATED"}));
        error
    }

    /// The per-minute rate is used up: 403, not 429.
    pub(crate) fn rate_limited(project_number: u64) -> Self {
        let message = format!(
            "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute' of service \
             'compute.googleapis.com' for consumer 'project_number:{project_number}'."
        );
        let mut error = Self::new(403, "rateLimitExceeded", message);
        error.domain = "usageLimits";
        error.extra = Some(json!({"status": "PERMISSION_DENIED", "details": [{
            "@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "RATE_LIMIT_EXCEEDED",
            "domain": "googleapis.com", "metadata": {"service": "compute.googleapis.com"}}]}));
        error
    }

    pub(crate) fn body(&self) -> Value {
        let mut error = json!({
            "code": self.status,
            "message": self.message,
            "errors": [{"message": self.message, "domain": self.domain, "reason": self.reason}],
        });
        if let (Some(error), Some(Value::Object(extra))) = (error.as_object_mut(), &self.extra) {
            error.extend(extra.clone());
        }
        json!({"error": error})
    }
}

/// How a call that was accepted ended.
#[derive(Clone, Debug)]
pub(crate) struct OperationError {
    pub(crate) status: u16,
    pub(crate) title: &'static str,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl OperationError {
    pub(crate) fn exists(resource: &str) -> Self {
        Self {
            status: 409,
            title: "CONFLICT",
            code: "RESOURCE_ALREADY_EXISTS",
            message: format!("The resource '{resource}' already exists"),
        }
    }

    pub(crate) fn condition(message: &str) -> Self {
        Self { status: 412, title: "PRECONDITION FAILED", code: "CONDITION_NOT_MET", message: message.to_owned() }
    }
}

/// Why an instance could not be created this time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    quota: Option<(u32, String)>,
}

impl Attempt {
    pub(crate) fn stockout(project: &str, zone: &str, name: &str) -> Self {
        let message = format!(
            "Instance '{name}' creation failed: The zone 'projects/{project}/zones/{zone}' does not have enough \
             resources available to fulfill the request.  '(resource type:compute)'."
        );
        Self { code: "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", message, quota: None }
    }

    pub(crate) fn quota(region: &str, limit: u32, name: &str) -> Self {
        let message =
            format!("Instance '{name}' creation failed: Quota 'CPUS' exceeded.  Limit: {limit}.0 in region {region}.");
        Self { code: "QUOTA_EXCEEDED", message, quota: Some((limit, region.to_owned())) }
    }

    pub(crate) fn body(&self) -> Value {
        let mut error = json!({"code": self.code, "message": self.message});
        if let (Some((limit, region)), Some(error)) = (&self.quota, error.as_object_mut()) {
            let info = json!({"metricName": "compute.googleapis.com/cpus", "limitName": "CPUS-per-project-region",
                "limit": limit, "dimensions": {"region": region}});
            error.insert("errorDetails".to_owned(), json!([{"quotaInfo": info}]));
        }
        json!({"errors": {"errors": [error]}})
    }
}
