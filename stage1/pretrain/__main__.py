from stage1.pretrain.train import main

main()
