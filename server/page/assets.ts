import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Hono } from 'hono'
import { repository } from '../../lib/repository.ts'
import type { AppEnv } from '../env.ts'

const TYPES = { css: 'text/css', js: 'text/javascript', svg: 'image/svg+xml' }

/** The files that the page loads. A path depends on the content, so that a browser may keep the file forever. */
const assets = ['page.css', 'live.js', 'icon.svg'].map(file => {
  const body = readFileSync(join(repository, 'server/page', file), 'utf8')
  const [name = '', extension = ''] = file.split('.')
  const hash = createHash('sha256').update(body).digest('base64url').slice(0, 12)
  return { file, path: `/assets/${name}-${hash}.${extension}`, body, type: TYPES[extension as keyof typeof TYPES] }
})

export function assetPath(file: 'page.css' | 'live.js' | 'icon.svg') {
  return assets.find(asset => asset.file === file)!.path
}

export function serveAssets(app: Hono<AppEnv>) {
  for (const { path, body, type } of assets) {
    app.get(path, c =>
      c.body(body, 200, {
        'content-type': `${type}; charset=utf-8`,
        'cache-control': 'public, max-age=31536000, immutable',
        'x-content-type-options': 'nosniff',
      }),
    )
  }
}
