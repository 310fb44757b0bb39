//! The status page.
use machine::Millis;
use serde_json::Value;
pub fn render(status: &Value, _state: Option<&Value>, _now: Millis) -> String {
    format!("{status}\n")
}
