.PHONY: check lint types test format measure measure-rules

check: lint types test ## everything a reviewer would ask for, in the active environment

lint:
	ruff check .

types:
	mypy

test:
	pytest

format:
	ruff format .
	ruff check --fix .

# Everything that is said about a bundle, measured and written anew: its manifest, its card, and the pages below docs. DATA is a folder as
# docs/leaderboard.md describes it. Corrections come first: `model reference` counts labels after them.
BUNDLE ?= models/service-zh-en-6x384
DATA ?= data
REPORTS ?= reports
SERVICE = -d $(DATA)/service/dev.zh.jsonl -d $(DATA)/service/dev.en.jsonl
THREE = smp2020_ewect_usual.dev smp2020_ewect_virus.dev jddc_satisfaction.valid goemotions.dev tweeteval_emotion.val tweeteval_sentiment.val \
	meld.dev xdailydialog_zh.dev xdailydialog_en.dev
TWO = chnsenticorp.dev eprstmt.dev_few_all sst2.dev
TESTS = smp2020_ewect_usual.test semeval2017_4a.test goemotions.test tweeteval_emotion.test

measure: ## needs the extra train and the data; half an hour on two cores
	stream-sentiment model corrections $(BUNDLE) $(SERVICE) -d $(DATA)/service/conversations.zh.jsonl -d $(DATA)/service/conversations.en.jsonl \
		-d $(DATA)/dev/jddc_satisfaction.valid.jsonl.gz $(foreach s,$(filter-out jddc%,$(THREE)),--also $(DATA)/dev/$(s).jsonl.gz) \
		--record --page docs/corrections.md
	stream-sentiment model evaluate $(BUNDLE) $(SERVICE) $(foreach s,$(THREE),-d $(DATA)/dev/$(s).jsonl.gz) \
		$(foreach s,$(TESTS),-d $(DATA)/test_public/$(s).jsonl.gz) --record --out $(REPORTS)/three-classes
	stream-sentiment model evaluate $(BUNDLE) --binary $(foreach s,$(TWO),-d $(DATA)/dev/$(s).jsonl.gz) -d $(DATA)/test_public/sst2.test.jsonl.gz \
		--record --out $(REPORTS)/two-classes
	stream-sentiment model fairness $(BUNDLE) $(SERVICE) -d $(DATA)/service/conversations.zh.jsonl -d $(DATA)/service/conversations.en.jsonl \
		--record --out $(REPORTS)/fairness
	cp $(REPORTS)/fairness/fairness.png docs/images/fairness.png
	stream-sentiment model leaderboard $(BUNDLE) --data-root $(DATA) --folds $(if $(wildcard $(REPORTS)/leaderboard.json),--earlier $(REPORTS)/leaderboard.json) \
		--out $(REPORTS) --page docs/leaderboard.md
	stream-sentiment explain --model $(BUNDLE) --faithfulness $(SERVICE) -d $(DATA)/dev/smp2020_ewect_usual.dev.jsonl.gz \
		-d $(DATA)/dev/jddc_satisfaction.valid.jsonl.gz --page docs/explain.md
	stream-sentiment model card $(BUNDLE) --write

# What docs/rules.md says about the default rules and the signals; a few minutes, without the extra train.
measure-rules:
	python -m stream_sentiment.backtest.page $(DATA) docs/rules.md
