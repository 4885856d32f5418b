import js from '@eslint/js'
import tseslint from 'typescript-eslint'

export default tseslint.config(
  { ignores: ['node_modules', '.local', '.tap', 'migrations'] },
  js.configs.recommended,
  ...tseslint.configs.recommendedTypeChecked,
  {
    languageOptions: {
      parserOptions: {
        projectService: { allowDefaultProject: ['eslint.config.js'] },
        tsconfigRootDir: import.meta.dirname,
      },
    },
    rules: {
      // Style: only config.ts reads the environment.
      'no-restricted-properties': ['error', { object: 'process', property: 'env', message: 'Read settings in config.ts.' }],
      // Hono handlers and tap callbacks may be async without awaiting.
      '@typescript-eslint/require-await': 'off',
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true, allowBoolean: true }],
    },
  },
  {
    // The one file that runs in a browser.
    files: ['server/page/live.js'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: {
      globals: Object.fromEntries(['document', 'location', 'fetch', 'getSelection', 'setTimeout', 'clearTimeout', 'AbortSignal', 'DOMParser']
        .map(name => [name, 'readonly'])),
      parserOptions: { projectService: false },
    },
  },
  {
    // Plain JavaScript, so that nothing is compiled each time that it runs.
    files: ['docker/node/health.js'],
    extends: [tseslint.configs.disableTypeChecked],
    languageOptions: {
      globals: Object.fromEntries(['process', 'fetch', 'AbortSignal'].map(name => [name, 'readonly'])),
      parserOptions: { projectService: false },
    },
  },
  {
    files: ['**/*.test.ts', '**/*.test.tsx'],
    rules: {
      // tap itself waits for its subtests.
      '@typescript-eslint/no-floating-promises': ['error', {
        allowForKnownSafeCalls: [{ from: 'package', package: '@tapjs/test', name: 'test' }, { from: 'package', package: '@tapjs/core', name: 'test' }],
      }],
    },
  },
)
