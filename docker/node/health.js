// The healthcheck of the image, because that has no curl: node docker/node/health.js <url>
import { get } from 'node:https'

const [url = ''] = process.argv.slice(2)
const signal = AbortSignal.timeout(2500)
// The certificate has another name than 127.0.0.1. Nothing secret is sent, and only the status is read.
const isOk = process.env.TLS_CERT // eslint-disable-line no-restricted-properties -- the same variable decides what the server speaks
  ? await new Promise((resolve, reject) => {
      get(url.replace(/^http:/, 'https:'), { signal, rejectUnauthorized: false }, answer => {
        resolve(answer.resume().statusCode === 200)
      }).on('error', reject)
    })
  : (await fetch(url, { signal })).ok
process.exitCode = isOk ? 0 : 1
