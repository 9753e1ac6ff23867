//! What kstatus, and with it Flux, Argo CD and `helm --wait`, takes a custom resource for: its order of decisions.
//!
//! ```text
//!   deletionTimestamp ──> Terminating          Stalled=True ──────> Failed
//!   generation unseen ──> InProgress           Ready=True ────────> Current, any other Ready ──> InProgress
//!   Reconciling=True ───> InProgress           nothing at all ────> Current
//! ```

use serde_json::Value;

/// What a resource is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kstatus {
    /// It is on its way.
    InProgress,
    /// It will not get there without a person.
    Failed,
    /// It is as its spec says.
    Current,
    /// It is being deleted.
    Terminating,
}

/// What this object is taken for.
#[must_use]
pub fn kstatus(object: &Value) -> Kstatus {
    if object.pointer("/metadata/deletionTimestamp").is_some() {
        return Kstatus::Terminating;
    }
    let observed = object.pointer("/status/observedGeneration");
    if observed.is_some() && observed != object.pointer("/metadata/generation") {
        return Kstatus::InProgress;
    }
    match (condition(object, "Reconciling"), condition(object, "Stalled"), condition(object, "Ready")) {
        (Some("True"), _, _) => Kstatus::InProgress,
        (_, Some("True"), _) => Kstatus::Failed,
        (_, _, Some("True") | None) => Kstatus::Current,
        (_, _, Some(_)) => Kstatus::InProgress,
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|c| c.get("type").is_some_and(|t| t == kind))?.get("status")?.as_str()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn decisions_come_in_kstatus_order() {
        let object = |status: Value| json!({"metadata": {"generation": 2}, "status": status});
        let conditions = |of: &[(&str, &str)]| -> Value {
            of.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect()
        };
        let ready = conditions(&[("Ready", "True")]);
        assert_eq!(kstatus(&object(json!({}))), Kstatus::Current);
        assert_eq!(kstatus(&object(json!({"observedGeneration": -1}))), Kstatus::InProgress);
        let stale = json!({"observedGeneration": 1, "conditions": ready});
        assert_eq!(kstatus(&object(stale)), Kstatus::InProgress);
        assert_eq!(kstatus(&object(json!({"observedGeneration": 2, "conditions": ready}))), Kstatus::Current);
        let cases: [(&[(&str, &str)], _); 4] = [
            (&[("Stalled", "True"), ("Ready", "True"), ("Reconciling", "True")], Kstatus::InProgress),
            (&[("Stalled", "True"), ("Ready", "True")], Kstatus::Failed),
            (&[("Ready", "Unknown")], Kstatus::InProgress),
            (&[("Stalled", "False"), ("Ready", "False")], Kstatus::InProgress),
        ];
        for (given, expected) in cases {
            assert_eq!(kstatus(&object(json!({"conditions": conditions(given)}))), expected, "{given:?}");
        }
        let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        assert_eq!(kstatus(&leaving), Kstatus::Terminating);
    }
}
