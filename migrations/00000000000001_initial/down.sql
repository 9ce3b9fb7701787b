DROP TABLE attempts;
DROP TABLE deliveries;
DROP TABLE runs;
DROP TABLE signing_secrets;
DROP TABLE api_tokens;
DROP TABLE organizations;
