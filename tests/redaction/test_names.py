"""A name says whether its value is a secret."""

import pytest

from hf_compress.redaction import is_secret

SECRETS = """
--hub_token --token --push-to-hub-token --hubToken --HUB_TOKEN --hubtoken --hf-token HF_TOKEN HFToken
HUGGING_FACE_HUB_TOKEN --access_token --accessToken --use_auth_token --auth --basic_auth Authorization
--bearer WANDB_API_KEY --wandb_key --apiKey --api-keys COMET_API_KEY NEPTUNE_API_TOKEN AWS_SECRET_ACCESS_KEY
AWS_ACCESS_KEY_ID AWS_SESSION_TOKEN s3.secret_key fs.s3a.access.key AccountKey --key --private_key --ssh_key
--encryption-key X-Api-Key --password --passwd --db_password PGPASSWORD --dbpass --db_pass --pass --pwd DB_PWD
--passphrase client.secret --client_secret CLIENTSECRET --secrets --credentials GOOGLE_APPLICATION_CREDENTIALS
--creds GITHUB_TOKEN GH_TOKEN --user_token --github_tokens --cookie sig X-Amz-Signature X-Amz-Security-Token
--oauth_token jwt
"""
HARMLESS = """
--tokenizer_name --tokenizer --max_new_tokens --max_tokens --num_tokens --tokens --pad_token_id --pad_token
--eos_token bos_token unk_token cls_token mask_token additional_special_tokens token_type_ids --token_dropout
token-classification --key_column --sort_key primary_key text_key num_key_value_heads key_length
past_key_values --keys --label_key --monkey --keyword --keyboard --turkey --author --authors --auth_type
SSH_AUTH_SOCK --two_pass --bypass --passes PWD OLDPWD --hub_model_id --compress_hub_id --hub_strategy
--push_to_hub --secretary --subtoken_pooling --path --seed --signature_columns --image_token_id padtoken
KeyError APIKeyError TokenWarning
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_a_name_of_a_secret_is_recognised(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", HARMLESS.split())
def test_a_similar_name_is_not_a_secret(name: str) -> None:
    assert not is_secret(name)
