import type { Attributes, Context, Span, TextMapGetter } from '@opentelemetry/api'
import type { HttpBindings } from '@hono/node-server'
import type { MiddlewareHandler } from 'hono'
import { routePath } from 'hono/route'
import type { IncomingHttpHeaders } from 'node:http'
import type { Log } from './log.ts'
import { version } from './version.ts'
import { withTimeout } from './timeout.ts'

export type Tracing = Awaited<ReturnType<typeof loadTracing>>

/** A batch has at most this many requests. */
const MAX_LINKS = 1_000
/** A receiver that does not answer must not delay the end of the process. */
const SHUTDOWN_MS = 3_000
const QUIET_MS = 60_000

/** Undefined if no endpoint is set; then no part of OpenTelemetry is loaded. */
export function startTracing(endpoint: string | undefined, service: string, log: Log): Promise<Tracing> | undefined {
  return endpoint === undefined ? undefined : loadTracing(service, log)
}

/** OpenTelemetry reads its settings (OTEL_*) from the environment itself, as the AWS SDK does. */
async function loadTracing(serviceName: string, log: Log) {
  const { context, diag, DiagLogLevel, propagation, ROOT_CONTEXT, SpanKind, SpanStatusCode, trace } =
    await import('@opentelemetry/api')
  const { OTLPTraceExporter } = await import('@opentelemetry/exporter-trace-otlp-http')
  const { detectResources, envDetector, resourceFromAttributes } = await import('@opentelemetry/resources')
  const { BatchSpanProcessor, NodeTracerProvider } = await import('@opentelemetry/sdk-trace-node')

  diag.setLogger(quietly(log), DiagLogLevel.WARN)
  const provider = new NodeTracerProvider({
    // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come last, so they take precedence.
    resource: resourceFromAttributes({
      'service.name': serviceName,
      'service.version': version,
      'process.pid': process.pid,
    }).merge(detectResources({ detectors: [envDetector] })),
    spanLimits: { linkCountLimit: MAX_LINKS },
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
  })
  // Reads the W3C's traceparent, and carries the context across promises.
  provider.register()
  const tracer = trace.getTracer('nexmdm', version)
  const headersGetter: TextMapGetter<IncomingHttpHeaders> = {
    get: (headers, key) => headers[key],
    keys: headers => Object.keys(headers),
  }

  function fail(span: Span, error: unknown) {
    // The message may quote what a client sent. It is in the log, which removes tokens.
    const { code, name } = error as { code?: string; name?: string }
    span.setAttribute('error.type', code ?? name ?? 'unknown')
    span.setStatus({ code: SpanStatusCode.ERROR })
  }

  /** Runs work inside a span, which is the work's context. */
  async function inSpan<T>(span: Span, parent: Context, work: (span: Span) => Promise<T>): Promise<T> {
    try {
      return await context.with(trace.setSpan(parent, span), () => work(span))
    } catch (error) {
      fail(span, error)
      throw error
    } finally {
      span.end()
    }
  }

  /** Traces each request, including those that match no route. */
  const request: MiddlewareHandler<{ Bindings: HttpBindings }> = async (c, next) => {
    const { method, headers } = c.env.incoming
    const parent = propagation.extract(ROOT_CONTEXT, headers, headersGetter)
    const attributes = { 'http.request.method': method ?? '', 'url.scheme': 'http' }
    const span = tracer.startSpan(method ?? 'HTTP', { kind: SpanKind.SERVER, attributes }, parent)
    await inSpan(span, parent, async () => {
      await next()
      const route = routePath(c, -1)
      if (route !== '/*') {
        span.updateName(`${method} ${route}`)
        span.setAttribute('http.route', route)
      }
      span.setAttribute('http.response.status_code', c.res.status)
      if (c.res.status >= 500) span.setStatus({ code: SpanStatusCode.ERROR })
    })
  }

  function step<T>(this: void, name: string, attributes: Attributes, work: () => Promise<T>) {
    const parent = context.active()
    return inSpan(tracer.startSpan(name, { attributes }, parent), parent, work)
  }

  return {
    request,

    /** The current span. A heartbeat keeps it while it waits for its batch, so that the batch can refer to its request. */
    current: () => trace.getActiveSpan(),

    /** Traces a batch. It belongs to the request that came first, and refers to the others by links. */
    batch<T>(requests: (Span | undefined)[], attributes: Attributes, work: () => Promise<T>) {
      const [first, ...others] = requests.filter(span => span !== undefined)
      const parent = first === undefined ? ROOT_CONTEXT : trace.setSpan(ROOT_CONTEXT, first)
      const links = others.map(span => ({ context: span.spanContext() }))
      return inSpan(tracer.startSpan('heartbeat batch', { attributes, links }, parent), parent, work)
    },

    /** Traces one statement. */
    statement<T>(procedure: string, attributes: Attributes, work: () => Promise<T>) {
      const parent = context.active()
      const span = tracer.startSpan(
        procedure,
        {
          kind: SpanKind.CLIENT,
          attributes: { 'db.system.name': 'postgresql', 'db.stored_procedure.name': procedure, ...attributes },
        },
        parent,
      )
      return inSpan(span, parent, work)
    },

    /** Traces any other work. */
    step,

    /** Sends the remaining spans. */
    async stop() {
      await withTimeout(SHUTDOWN_MS, provider.shutdown()).catch(() => {})
    },
  }
}

/** Logs at most one line a minute while the receiver does not answer. */
function quietly(log: Log) {
  let until = 0
  const warn = (message: string) => {
    if (Date.now() < until) return
    until = Date.now() + QUIET_MS
    log.warn({ event: 'tracing.failed', error: message }, 'Spans are lost. Nothing else is affected.')
  }
  return { error: warn, warn, info: () => {}, debug: () => {}, verbose: () => {} }
}
