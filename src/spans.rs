//! How spans of several processes become one trace: W3C trace context in and out of [`tracing`] spans.
//!
//! Spans are exported with the feature `otlp` ([`crate::telemetry`]); without it, and while no collector is configured,
//! everything here does nothing.

use tracing::Span;

/// Where a run keeps the span of the request that asked for it, in its `configurable` (contract section 1.5).
pub const TRACEPARENT: &str = "__otel_traceparent__";

/// Makes a new span part of the trace that a `traceparent` names. One that names none is ignored.
#[cfg(feature = "otlp")]
pub fn continue_from(span: &Span, traceparent: &str, tracestate: Option<&str>) {
    use std::collections::HashMap;

    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    if span.is_disabled() {
        return;
    }
    let mut carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    if let Some(tracestate) = tracestate {
        carrier.insert("tracestate".to_owned(), tracestate.to_owned());
    }
    // Refused where no exporter listens.
    let _unheard = span.set_parent(TraceContextPropagator::new().extract(&carrier));
}

/// Makes a new span part of the trace that a `traceparent` names. One that names none is ignored.
#[cfg(not(feature = "otlp"))]
pub fn continue_from(_: &Span, _: &str, _: Option<&str>) {}

/// The `traceparent` of the present span, if it is exported.
#[cfg(feature = "otlp")]
pub fn traceparent() -> Option<String> {
    use std::collections::HashMap;

    use opentelemetry::propagation::TextMapPropagator;
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use tracing_opentelemetry::OpenTelemetrySpanExt;

    let mut carrier = HashMap::<String, String>::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.remove("traceparent")
}

/// The `traceparent` of the present span, if it is exported.
#[cfg(not(feature = "otlp"))]
pub fn traceparent() -> Option<String> {
    None
}
