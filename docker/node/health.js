// The healthcheck of the image, because that has no curl: node docker/node/health.js <url>
const [url = ''] = process.argv.slice(2)
const answer = await fetch(url, { signal: AbortSignal.timeout(2500) })
process.exitCode = answer.ok ? 0 : 1
